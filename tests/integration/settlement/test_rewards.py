"""Rewards of every role, claimed by the command without a node: what left the escrow arrives, to the wei."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from openlora_node.artifacts.shares import ShareTable
from openlora_node.journal.pipelines import KnownPipeline
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.ids import format_address, format_artifact_id, format_bytes
from openlora_node.protocol.merkle import MerkleTree, amount_leaf
from openlora_node.protocol.pipeline import Adapter, Pipeline
from support.chain_cli import ChainCli
from support.chain_world import ADAPTER, BASE, DATASET, ETHER, ChainWorld, artifact_id, fresh_wallet
from support.settlement_world import open_desk

pytestmark = pytest.mark.slow
BASE_RATE, ADAPTER_RATE = 7 * 10**18 + 3, 11 * 10**18 + 1
TOKENS, COMPUTE = 123_457, 10**17 + 13


async def test_every_role_claims_and_nothing_is_lost(world: ChainWorld, cli: ChainCli, tmp_path: Path) -> None:
    label = "every role"
    key, payer, base_owner, adapter_owner, dataset_owner, sender = (
        fresh_wallet(f"{label} {name}") for name in ("key", "payer", "base", "adapter", "dataset", "sender")
    )
    payout = fresh_wallet(f"{label} payout").address
    contributors = [fresh_wallet(f"{label} contributor {number}").address for number in range(3)]
    for wallet in (key, payer, base_owner, adapter_owner, dataset_owner, sender):
        await world.fund(wallet.address, 20 * ETHER)
    table = ShareTable.of(zip(map(Address, contributors), (5_000, 3_333, 1_667), strict=True))
    base, adapter, dataset = (artifact_id(f"{label} {name}") for name in ("base", "adapter", "dataset"))
    await world.register_artifact(dataset_owner, dataset, DATASET, shares_root=table.root, credits_bps=2_500)
    await world.register_artifact(base_owner, base, BASE, BASE_RATE, components=[(dataset, 1_111)])
    parts = sorted([(base, 1_000), (dataset, 2_222)])
    await world.register_artifact(adapter_owner, adapter, ADAPTER, ADAPTER_RATE, components=parts)
    node = await world.register_node(key, recipient=payout)
    await world.send(payer, world.settlement.deposit(node, 10 * ETHER))
    pipeline = KnownPipeline(
        Pipeline.of(base, Adapter(id=adapter, terms_version=1, weight=7_500), base_terms_version=1),
        (BASE_RATE, ADAPTER_RATE),
    )
    async with open_desk(world, tmp_path, key, node) as desk:
        await desk.voucher(payer, pipeline, TOKENS, COMPUTE)
        await desk.round()
    spent = 10 * ETHER - (await world.settlement.account_of(payer.address, node)).balance
    royalties = pipeline.schedule.royalties(TOKENS)
    assert spent == COMPUTE + royalties

    sender_file = await cli.key(sender, "sender")
    paying = ("--key", sender_file, "--password-file", cli.password, "--yes")
    treasury = await world.settlement.treasury()
    accounts = [payout, treasury, base_owner.address, adapter_owner.address, dataset_owner.address, *contributors]
    before = {account: await world.rpc.balance(account) for account in accounts}

    by_node = ("--node", format_bytes(node))
    (operator,) = await cli.json("rewards", "show", "operator", *by_node)
    assert operator["recipient"] == format_address(payout)
    await cli.json("rewards", "claim", "operator", *by_node, *paying)
    await cli.json("rewards", "claim", "protocol", *by_node, *paying)

    # The owners' royalties are not shared out yet: shown as pending, shared out by the claim.
    of_adapter = ("--address", format_address(adapter_owner.address))
    (shown,) = await cli.json("rewards", "show", "owner", *of_adapter)
    assert shown["claimable"] == "0"
    assert int(shown["pending"]) > 0
    code, output, _ = await cli.run("rewards", "show", "owner", *of_adapter, "--csv")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(output))
    assert row["pending_wei"] == shown["pending"]
    plan = await cli.json("rewards", "claim", "owner", *of_adapter, "--key", sender_file)
    assert [step["step"] for step in plan["plan"]["steps"]] == ["share out royalties", "claim the royalties"]
    of_dataset = ("--dataset", format_artifact_id(dataset), "--shares", tmp_path / "shares.json")
    (tmp_path / "shares.json").write_bytes(table.encode())
    expected = []
    for account in contributors:
        (share,) = await cli.json("rewards", "show", "contributor", "--address", format_address(account), *of_dataset)
        assert share["claimable"] == "0"
        expected.append(int(share["pending"]))
    await cli.json("rewards", "claim", "owner", *of_adapter, *paying)
    assert await world.rpc.balance(adapter_owner.address) - before[adapter_owner.address] == int(shown["pending"])
    await cli.json("rewards", "claim", "owner", "--address", format_address(base_owner.address), *paying)
    for account, wei in zip(contributors, expected, strict=True):
        by = ("--address", format_address(account), *of_dataset)
        await cli.json("rewards", "claim", "contributor", *by, "--no-scan", *paying)
        assert await world.rpc.balance(account) == wei

    # What is credited by use: the node posts, the timelock passes, contributors claim with both proofs.
    pool = await world.settlement.credit_pool(node, dataset)
    credited = [(contributors[0], pool.accrued // 3), (contributors[2], pool.accrued // 2)]
    root = MerkleTree(amount_leaf(*row) for row in credited).root
    total = sum(wei for _, wei in credited)
    await world.send(key, world.credits.post(node, dataset, 1, root, root, total, pool.accrued))
    await world.pass_time(61)
    await world.send(sender, world.credits.activate(node, dataset))
    posted = tmp_path / "credits.json"
    rows = ", ".join(f'{{"account": "{format_address(account)}", "wei": "{wei}"}}' for account, wei in credited)
    posted.write_text(f"[{rows}]")
    for account, wei in credited:
        held = await world.rpc.balance(account)
        by = ("--address", format_address(account), *of_dataset, "--credits", posted, *by_node, "--no-scan")
        found = await cli.json("rewards", "show", "contributor", *by)
        await cli.json("rewards", "claim", "contributor", *by, *paying)
        assert int(found[1]["claimable"]) == wei
        assert await world.rpc.balance(account) == held + wei + int(found[0]["claimable"])
    await cli.json(
        "rewards",
        "claim",
        "contributor",
        "--address",
        format_address(contributors[1]),
        *of_dataset,
        "--no-scan",
        *paying,
    )

    earned = sum([await world.rpc.balance(account) - before[account] for account in accounts])
    left = await world.settlement.share_pool_of(dataset, table.root)
    accrued, harvested = await world.settlement.accumulator_of(node, pipeline.pipeline.id)
    assert accrued == harvested == royalties
    dust = spent - earned
    # Each floor of the division leaves at most a wei: two parts, and a share of each contributor.
    assert 0 <= dust <= 5
    assert left.total - left.claimed <= dust
    assert await world.settlement.operator_balance(node) == 0
    nothing = await cli.json("rewards", "claim", "operator", *by_node, *paying, status=8)
    assert "nothing to claim" in nothing["error"]["message"]
    other = tmp_path / "other.json"
    other.write_bytes(ShareTable.of([(Address(contributors[0]), 10_000)]).encode())
    wrong = ("--address", format_address(contributors[0]), "--dataset", format_artifact_id(dataset), "--shares", other)
    refused = await cli.json("rewards", "show", "contributor", *wrong, "--no-scan", status=8)
    assert "not the dataset's" in refused["error"]["message"]
    assert (await world.rpc.balance(world.deployment.settlement)) >= dust
    totals = await cli.json_alone("rewards", "earnings", "--journal", tmp_path / "node.sqlite")
    assert int(totals["gas"]) == 0  # the last round redeemed; no round has accounted for it yet
