"""Vouchers become money on a real chain: to the wei, when they should, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.journal import LedgerKey
from openlora_node.protocol.health import Level
from openlora_node.settlement.accounting import earnings_rows
from support.chain_world import BASE, ETHER, OWNER, ChainWorld, artifact_id, fresh_wallet
from support.settlement_world import known, open_desk

pytestmark = pytest.mark.slow
GWEI = 10**9
RATE = 3 * 10**18
PRICE = 10 * GWEI


async def test_a_voucher_is_redeemed_to_the_wei_once_it_is_worth_its_gas(world: ChainWorld, tmp_path: Path) -> None:
    key, payer, base_owner = fresh_wallet("worth key"), fresh_wallet("worth payer"), fresh_wallet("worth base")
    payout = fresh_wallet("worth payout").address
    for account in (key, payer, base_owner):
        await world.fund(account.address, 10 * ETHER)
    base = artifact_id("worth")
    await world.register_artifact(base_owner, base, BASE, RATE)
    node = await world.register_node(key, recipient=payout)
    await world.send(payer, world.settlement.deposit(node, 2 * ETHER))
    pipeline = known(base, version=1, rate=RATE)
    async with open_desk(world, tmp_path, key, node) as desk:
        small = await desk.voucher(payer, pipeline, 10, 10**9)
        await desk.round()
        assert await desk.kinds() == []
        assert desk.service.status().due == 10**9 + 10 * RATE // 10**6
        ledger = await desk.voucher(payer, pipeline, 1_000, 10**17 + 7)
        assert ledger == small
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        royalties = 1_000 * RATE // 10**6
        protocol = (10**17 + 7) * await world.settlement.protocol_bps() // 10_000
        escrow = await world.settlement.account_of(payer.address, node)
        assert escrow.balance == 2 * ETHER - (10**17 + 7) - royalties
        assert await world.settlement.operator_balance(node) == 10**17 + 7 - protocol
        # Nothing more to redeem; what was paid is written down, and the gas with it.
        await desk.round()
        assert (await desk.journal.ledger(ledger)).redeemed == 10**17 + 7 + royalties
        status = desk.service.status()
        assert status.due == 0
        assert status.totals.redeemed == 10**17 + 7 - protocol
        assert status.totals.royalties == royalties
        assert status.totals.gas_wei == 10 * ETHER - await world.rpc.balance(key.address)
        # Claims go to the recipient that the owner set.
        desk.now += 3_600
        await desk.round()
        assert await world.rpc.balance(payout) == 10**17 + 7 - protocol
        await desk.round()
        assert desk.service.status().totals.claimed == 10**17 + 7 - protocol
        head = await world.rpc.head()
        assert head.timestamp - 3_600 < desk.service.status().totals.last_claim <= head.timestamp
        assert desk.service.health().level is Level.UP
        await desk.journal.check_integrity(deep=True)
        rows = earnings_rows(tmp_path / "node.sqlite")
        assert {row[1] for row in rows} >= {"redeemed", "claimed", "gas:redeem", "gas:claim"}
        assert sum(int(row[5]) for row in rows if row[1] == "redeemed") == 10**17 + 7 - protocol
        assert sum(int(row[8]) for row in rows) == 10 * ETHER - await world.rpc.balance(key.address)


async def test_a_thaw_makes_it_redeem_at_once(world: ChainWorld, tmp_path: Path) -> None:
    key, payer = fresh_wallet("thaw key"), fresh_wallet("thaw payer")
    for account in (key, payer):
        await world.fund(account.address, 2 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, ETHER))
    async with open_desk(world, tmp_path, key, node) as desk:
        ledger: LedgerKey = await desk.voucher(payer, known(artifact_id("free")), 5, 1_000)
        await desk.round()
        assert await desk.kinds() == []
        desk.service._wake.clear()
        await world.send(payer, world.settlement.thaw(node, ETHER))
        await desk.catch_up()
        assert desk.service._wake.is_set()
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER - 1_000
        await desk.round()
        assert (await desk.journal.ledger(ledger)).redeemed == 1_000


async def test_superseded_terms_and_age_do_not_wait(world: ChainWorld, tmp_path: Path) -> None:
    key, payer = fresh_wallet("terms key"), fresh_wallet("terms payer")
    for account in (key, payer):
        await world.fund(account.address, 2 * ETHER)
    base, other = artifact_id("superseded"), artifact_id("aged")
    await world.register_artifact(OWNER, base, BASE, 1)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, ETHER))
    async with open_desk(world, tmp_path, key, node) as desk:
        await desk.voucher(payer, known(base, version=1, rate=1), 5, 1_000)
        await desk.round()
        assert await desk.kinds() == []
        await world.send(OWNER, world.artifacts.set_terms(base, (2, 0, [])))
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        await desk.voucher(payer, known(other), 5, 1_000)
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        desk.now += 7 * 86_400
        await desk.round()
        assert await desk.kinds() == ["redeem", "redeem"]
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER - 2_000


async def test_a_debt_is_collected_when_escrow_grows(world: ChainWorld, tmp_path: Path) -> None:
    key, payer = fresh_wallet("debt key"), fresh_wallet("debt payer")
    for account in (key, payer):
        await world.fund(account.address, 3 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, ETHER // 10))
    async with open_desk(world, tmp_path, key, node) as desk:
        ledger = await desk.voucher(payer, known(artifact_id("debt")), 5, ETHER)
        await desk.round()
        await desk.round()
        assert (await desk.journal.ledger(ledger)).redeemed == ETHER // 10
        assert desk.service.status().owed == ETHER - ETHER // 10
        await world.send(payer, world.settlement.deposit(node, ETHER))
        await desk.round()
        assert (await desk.kinds()).count("collect") == 1
        await desk.round()
        assert (await desk.journal.ledger(ledger)).redeemed == ETHER
        assert desk.service.status().owed == 0
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER // 10


async def test_epochs_are_anchored_once_and_an_anchor_on_chain_is_passed_over(
    world: ChainWorld, tmp_path: Path
) -> None:
    key = fresh_wallet("anchor key")
    await world.fund(key.address)
    node = await world.register_node(key)
    roots = {7: b"\x07" * 32, 8: b"\x08" * 32, 9: b"\x09" * 32}
    await world.send(OWNER, world.anchor.anchor(node, 7, roots[7], (1, 1, 1, 1, 1, 0)))
    async with open_desk(world, tmp_path, key, node) as desk:
        desk.epochs.roots, desk.epochs.closed = roots, 8
        await desk.round()
        assert await desk.kinds() == ["anchor"]
        assert await world.anchor.root_of(node, 8) == roots[8]
        assert not any(await world.anchor.root_of(node, 9))
        await desk.round()
        assert await desk.kinds() == ["anchor"]
        desk.epochs.closed = 9
        await desk.round()
        assert await world.anchor.root_of(node, 9) == roots[9]
        assert desk.service.status().anchored_through == 9
