"""The chain's nouns as their users run them: plans that send nothing, calldata for cold wallets, and bad input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from openlora_chain import keystore
from openlora_chain.errors import Reverted
from openlora_chain.rpc import Call
from openlora_chain.store import NewIntent
from openlora_node.api.control import Command, Parameters, control_app
from openlora_node.journal.outbox import JournalOutbox
from openlora_node.protocol.ids import format_address, format_bytes
from support.chain_cli import ChainCli
from support.chain_world import ETHER, ChainWorld, fresh_wallet
from support.settlement_world import Desk, open_desk

pytestmark = pytest.mark.slow
OPEN = "OPEN"


async def registered(world: ChainWorld, cli: ChainCli, label: str) -> tuple[str, Path, Path]:
    """A node registered by the command: (node id, owner's key file, node's key file)."""
    owner, node_key = fresh_wallet(f"{label} owner"), fresh_wallet(f"{label} node")
    await world.fund(owner.address, 500 * ETHER)
    owner_file, node_file = await cli.key(owner, "owner"), await cli.key(node_key, "node")
    done = await cli.json(
        "operator", "register", "--key", owner_file, "--password-file", cli.password, "--yes",
        "--node-key", node_file, "--node-password-file", cli.password, "--endpoint", "/ip4/192.0.2.1/tcp/4001",
    )  # fmt: skip
    assert done["sent"] is True
    return done["node"], owner_file, node_file


async def test_register_then_look_after_the_entry(world: ChainWorld, cli: ChainCli) -> None:
    node, owner_file, _ = await registered(world, cli, "entry")
    owner = format_address(keystore.address_of(owner_file))
    paying = ("--key", owner_file, "--password-file", cli.password, "--yes", "--node", node)
    shown = await cli.json("operator", "status", "--node", node)
    assert (shown["state"], shown["owner"], shown["recipient"]) == ("active", owner, owner)
    assert shown["endpoint"] == "/ip4/192.0.2.1/tcp/4001"
    to = format_address(fresh_wallet("entry payout").address)
    await cli.json("operator", "set-recipient", to, *paying)
    await cli.json("operator", "update", "--endpoint", "https://node.example.org", *paying)
    fresh = await cli.key(fresh_wallet("entry second key"), "second")
    await cli.json("operator", "rotate-key", "--new-key", fresh, "--new-password-file", cli.password, *paying)
    shown = await cli.json("operator", "status", "--node", node)
    assert shown["recipient"] == to
    assert shown["endpoint"] == "https://node.example.org"
    assert shown["key"] == format_address(keystore.address_of(fresh))
    await cli.json("stake", "add", f"3 {OPEN}", *paying)
    await cli.json("stake", "thaw", f"2 {OPEN}", *paying)
    staked = await cli.json("stake", "status", "--node", node)
    assert int(staked["staked"]) == int(staked["least"]) + ETHER
    assert int(staked["thawing"]) == 2 * ETHER
    refused = await cli.json("stake", "withdraw", *paying, status=5)
    assert "StillThawing" in refused["error"]["message"]
    await world.pass_time(int(staked["thawEnd"]) - int(staked["now"]) + 1)
    await cli.json("stake", "withdraw", *paying)
    await cli.json("operator", "deregister", *paying)
    assert (await cli.json("operator", "status", "--node", node))["state"] == "deregistered"


async def test_this_machines_node_is_the_default_and_people_read_amounts(world: ChainWorld, cli: ChainCli) -> None:
    node, _, node_file = await registered(world, cli, "default")
    own = ("--set", f"keys.keystore_file={node_file}")
    assert (await cli.json("operator", "status", *own))["node"] == node
    (reward,) = await cli.json("rewards", "show", "operator", *own)
    assert (reward["what"], reward["claimable"]) == (f"node {node}", "0")
    code, output, _ = await cli.run("stake", "status", *own)
    assert code == 0
    least = await world.nodes.min_stake()
    assert output.count(f"{least // ETHER} OPEN") == 2
    unregistered = await cli.key(fresh_wallet("default stranger"), "unregistered")
    code, output, errors = await cli.run("stake", "status", "--set", f"keys.keystore_file={unregistered}")
    assert (code, output) == (8, "")
    assert "is not registered: `openlora operator register`" in errors


async def test_a_plan_and_a_dry_run_send_nothing_and_name_the_cost(world: ChainWorld, cli: ChainCli) -> None:
    node, owner_file, _ = await registered(world, cli, "plan")
    before = await world.rpc.nonce(keystore.address_of(owner_file))
    code, output, _ = await cli.run("stake", "add", f"1 {OPEN}", "--node", node, "--key", owner_file)
    assert code == 0
    assert "add --yes to send" in output
    assert "gas" in output
    assert "at most" in output
    code, output, _ = await cli.run(
        "stake", "add", f"1 {OPEN}", "--node", node, "--key", owner_file, "--yes", "--dry-run"
    )
    assert code == 0
    assert "dry run" in output
    plan = await cli.json("stake", "add", f"1 {OPEN}", "--node", node, "--key", owner_file)
    assert plan["sent"] is False
    assert plan["plan"]["steps"][0]["gas"] > 21_000
    assert int(plan["value"]) == ETHER
    assert await world.rpc.nonce(keystore.address_of(owner_file)) == before


async def test_a_cold_owner_gets_calldata_that_its_wallet_can_send(world: ChainWorld, cli: ChainCli) -> None:
    owner = fresh_wallet("cold owner")
    await world.fund(owner.address, 200 * ETHER)
    node_file = await cli.key(fresh_wallet("cold node"), "node")
    given = await cli.json(
        "operator", "register", "--from", format_address(owner.address), "--calldata",
        "--node-key", node_file, "--node-password-file", cli.password,
    )  # fmt: skip
    (call,) = given["calls"]
    to, data, value = bytes.fromhex(call["to"][2:]), bytes.fromhex(call["data"][2:]), int(call["value"])
    output = await world.rpc.call(Call(owner.address, to, data, value))
    assert format_bytes(output) == given["node"]
    with pytest.raises(Reverted):  # nobody else can use it
        await world.rpc.call(Call(keystore.address_of(await cli.key(fresh_wallet("thief"), "thief")), to, data, 0))


async def test_a_program_signs_for_the_sender(world: ChainWorld, cli: ChainCli, tmp_path: Path) -> None:
    node, _, _ = await registered(world, cli, "external")
    payer = fresh_wallet("external payer")
    await world.fund(payer.address, 5 * ETHER)
    program = tmp_path / "signer.py"
    program.write_text(
        "import json, sys\nfrom eth_account import Account\nfrom eth_utils import to_checksum_address\n"
        "tx = json.load(sys.stdin); tx.pop('from'); tx['to'] = to_checksum_address(tx['to'])\n"
        f"print(Account.sign_transaction(tx, {payer.reveal()!r}).raw_transaction.to_0x_hex())\n"
    )
    signing = ("--from", format_address(payer.address), "--sign-with", f"{sys.executable} {program}", "--yes")
    await cli.json("escrow", "deposit", node, f"2 {OPEN}", *signing)
    await cli.json("escrow", "thaw", node, "all", *signing)
    (shown,) = await cli.json("escrow", "show", node, "--payer", format_address(payer.address))
    assert (shown["balance"], shown["spendable"], shown["thawing"]) == (str(2 * ETHER), "0", str(2 * ETHER))
    await cli.json("escrow", "cancel-thaw", node, *signing)
    await cli.json("escrow", "thaw", node, f"1 {OPEN}", *signing)
    (shown,) = await cli.json("escrow", "status", node, "--payer", format_address(payer.address))
    await world.pass_time(100_000)
    await cli.json("escrow", "withdraw", node, *signing)
    (shown,) = await cli.json("escrow", "show", node, "--payer", format_address(payer.address))
    assert shown["balance"] == str(ETHER)


async def test_a_wallet_authorizes_a_signer_and_revokes_it(world: ChainWorld, cli: ChainCli) -> None:
    wallet, signer = fresh_wallet("signer wallet"), fresh_wallet("signer key")
    await world.fund(wallet.address)
    key = await cli.key(signer, "signer")
    paying = ("--key", await cli.key(wallet, "wallet"), "--password-file", cli.password)
    agreeing = ("--signer-key", key, "--signer-password-file", cli.password)
    plan = await cli.json("escrow", "signer", "authorize", *agreeing, *paying)
    assert (plan["sent"], plan["plan"]["signer"]) == (False, format_address(signer.address))
    assert not await world.settlement.may_sign(wallet.address, signer.address)
    # What the plan would send is good for the wallet alone, wherever it is.
    (cold,) = (
        await cli.json(
            "escrow", "signer", "authorize", *agreeing, "--from", format_address(wallet.address), "--calldata"
        )
    )["calls"]
    to, data = bytes.fromhex(cold["to"][2:]), bytes.fromhex(cold["data"][2:])
    with pytest.raises(Reverted):
        await world.rpc.call(Call(fresh_wallet("signer thief").address, to, data, 0))
    await world.rpc.call(Call(wallet.address, to, data, 0))

    await cli.json("escrow", "signer", "authorize", *agreeing, *paying, "--yes")
    assert await world.settlement.may_sign(wallet.address, signer.address)
    shown = await cli.json("escrow", "signer", "show", format_address(signer.address))
    assert (shown["payer"], shown["state"]) == (format_address(wallet.address), "authorized")
    done = await cli.json("escrow", "signer", "thaw", format_address(signer.address), *paying, "--yes")
    _, ends_at = await world.settlement.signer_of(signer.address)
    assert 0 <= ends_at - int(done["endsAt"]) < 60, "as the plan said, but for the block's own second"
    here = ("--set", f"keys.keystore_file={key}")
    assert (await cli.json("escrow", "signer", "show", *here))["state"] == "thawing"
    await cli.json("escrow", "signer", "authorize", *agreeing, *paying, "--yes")
    assert (await cli.json("escrow", "signer", "show", *here))["state"] == "authorized", "called off"


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (("stake", "add", "5"), 2, "write an amount with its unit"),
        (("stake", "add", "1.5 wei", "--node", "0x" + "00" * 32), 2, "one wei cannot be divided"),
        (("escrow", "deposit", "0x12", "1 OPEN"), 2, "a node id is 0x<64 hex>"),
        (("operator", "set-recipient", "0x" + "zz" * 20), 2, "an address is 0x<40 hex>"),
        (("operator", "status", "--node", "0x" + "ab" * 32), 8, "no node has this id"),
        (("operator", "status"), 2, "name the node"),
        (("escrow", "deposit", "0x" + "ab" * 32, "1 OPEN"), 2, "name the sender"),
        (("escrow", "deposit", "0x" + "ab" * 32, "1 OPEN", "--key", "/no/such/file"), 4, "KEY_NOT_FOUND"),
        (("rewards", "show", "owner"), 2, "owner needs --address"),
        (("rewards", "claim", "contributor", "--address", "0x" + "11" * 20), 2, "contributor needs --dataset"),
        (("rewards", "show", "banker"), 2, "banker"),
        (("rewards", "earnings", "--journal", "/no/such/file"), 8, "no journal named"),
    ],
)
async def test_bad_input_is_one_line_with_the_fix(cli: ChainCli, line: tuple[str, ...], status: int, says: str) -> None:
    if line[:2] == ("rewards", "earnings"):
        cli = ChainCliWithout(cli.folder, cli.url, cli.deployment)
    code, output, errors = await cli.run(*line)
    assert (code, output) == (status, "")
    assert says in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


class ChainCliWithout(ChainCli):
    """For commands that ask no chain."""

    def _line(self, arguments: tuple[object, ...]) -> list[str]:
        return [*map(str, arguments)]


async def test_the_chains_refusals_are_named(world: ChainWorld, cli: ChainCli) -> None:
    node, _, node_file = await registered(world, cli, "refusals")
    stranger = fresh_wallet("refusals stranger")
    await world.fund(stranger.address, ETHER)
    file = await cli.key(stranger, "stranger")
    paying = ("--key", file, "--password-file", cli.password, "--yes")
    refused = await cli.json("operator", "deregister", "--node", node, *paying, status=8)
    assert refused["error"]["code"] == "ACCESS_DENIED"
    refused = await cli.json("stake", "add", f"5 {OPEN}", "--node", node, *paying, status=5)
    assert "lacks 4" in refused["error"]["message"]
    refused = await cli.json("escrow", "withdraw", node, *paying, status=5)
    assert "BadAmount" in refused["error"]["message"]
    refused = await cli.json("escrow", "deposit", "0x" + "ab" * 32, "1 gwei", *paying, status=5)
    assert "NodeNotRegistered" in refused["error"]["message"]
    refused = await cli.json(
        "operator", "register", *paying, "--stake", f"1000 {OPEN}",
        "--node-key", node_file, "--node-password-file", cli.password, status=5,
    )  # fmt: skip
    assert "lacks" in refused["error"]["message"]
    wrong = cli.folder / "wrong"
    wrong.write_text("not it\n")
    wrong.chmod(0o600)
    refused = await cli.json(
        "stake", "add", "1 gwei", "--node", node, "--key", file, "--password-file", wrong, "--yes", status=4
    )
    assert "PASSWORD_WRONG" in refused["error"]["message"]


async def test_as_processes_without_a_chain_and_with_another(world: ChainWorld, cli: ChainCli) -> None:
    node = await world.register_node(fresh_wallet("process node"))
    code, output, _ = await cli.process("operator", "status", "--node", format_bytes(node), "--json")
    assert code == 0
    assert json.loads(output)["state"] == "active"
    gone = ChainCli(cli.folder, "http://127.0.0.1:9", cli.deployment)
    code, output, errors = await gone.process("stake", "status", "--node", format_bytes(node))
    assert (code, output) == (5, "")
    assert "RPC_UNREACHABLE" in errors
    other = cli.folder / "other.json"
    document = json.loads(cli.deployment.read_text())
    document["chainId"] = document["domain"]["chainId"] = 1612
    other.write_text(json.dumps(document))
    wrong = ChainCli(cli.folder, cli.url, other)
    refused = await wrong.json("stake", "status", "--node", format_bytes(node), status=5)
    assert "WRONG_CHAIN" in refused["error"]["message"]


async def test_the_running_node_sends_what_its_own_key_is_to_send(
    world: ChainWorld, cli: ChainCli, tmp_path: Path
) -> None:
    """A second sender of one key would take its nonces: the command hands over, and waits for the block."""
    key, payer = fresh_wallet("running key"), fresh_wallet("running payer")
    for account in (key, payer):
        await world.fund(account.address, 5 * ETHER)
    node = await world.register_node(key)
    file = await cli.key(key, "node-key")
    async with open_desk(world, tmp_path, key, node) as desk, control_of(desk, cli.control_socket):
        running = asyncio.create_task(desk.outbox.run(), name="outbox")
        paying = ("--key", file, "--password-file", cli.password, "--yes", "--set", f"keys.keystore_file={file}")
        done = await cli.json("escrow", "deposit", format_bytes(node), f"1 {OPEN}", *paying)
        assert done["byNode"] is True
        assert (await world.settlement.account_of(key.address, node)).balance == ETHER
        (intent,) = await JournalOutbox(desk.journal).recent(9)
        assert (intent.request.kind, intent.state.is_open) in {("cli", True), ("cli", False)}
        refused = await cli.json("escrow", "withdraw", format_bytes(node), *paying, status=5)
        assert "BadAmount" in refused["error"]["message"]
        running.cancel()


@asynccontextmanager
async def control_of(desk: Desk, socket: Path) -> AsyncIterator[None]:
    """The control socket of a node, as far as sending goes."""

    async def submit(given: Parameters) -> object:
        call = {name: bytes.fromhex(given[name][2:]) for name in ("subject", "to", "data")}
        new = NewIntent(
            given["kind"], call["subject"], desk.outbox.chain_id, desk.outbox.address, call["to"], call["data"],
            int(given["value"]),
        )  # fmt: skip
        return {"id": format_bytes((await desk.outbox.submit(new)).id)}

    async def transactions(_: Parameters) -> object:
        intents = await JournalOutbox(desk.journal).recent(50)
        return [{"id": format_bytes(one.id), "state": one.state.value, "note": one.note} for one in intents]

    async def status(_: Parameters) -> object:
        return {}

    commands = [
        Command("GET", "/status", status),
        Command("POST", "/transactions", submit),
        Command("GET", "/transactions", transactions),
    ]
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    runner = web.AppRunner(control_app(commands), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()
