"""Settlement when things go wrong: the process dies, the chain goes away, the contract refuses, gas runs out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from openlora_chain.errors import ChainError
from openlora_chain.rpc import Rpc
from openlora_node.journal.outbox import JournalOutbox
from openlora_node.journal.pipelines import KnownPipeline
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.health import Level
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.structs import SignerProof
from openlora_node.settlement.policy import (
    ANCHOR_GAS,
    BATCH_GAS,
    CLAIM_GAS,
    COLLECT_GAS,
    FIRST_VOUCHER_GAS,
    HARVEST_GAS,
    PART_GAS,
    PIPELINE_GAS,
    VOUCHER_GAS,
)
from support.chain_world import ADAPTER, BASE, DATASET, ETHER, OWNER, ChainWorld, artifact_id, fresh_wallet
from support.rpcproxy import RpcProxy
from support.settlement_world import known, open_desk

pytestmark = pytest.mark.slow


class DiskError(Exception):
    """This write fails."""


@pytest.mark.parametrize("failing", ["outbox.submit", "settlement.sent"])
async def test_a_voucher_and_its_intent_are_one_write(world: ChainWorld, tmp_path: Path, failing: str) -> None:
    """Whichever write fails, there is both or neither, and the next round redeems once."""
    key, payer = fresh_wallet(f"{failing} key"), fresh_wallet(f"{failing} payer")
    for account in (key, payer):
        await world.fund(account.address, 3 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, 2 * ETHER))
    steps: list[str] = []
    armed = True

    def on_step(name: str) -> None:
        steps.append(name)
        if armed and name == failing:
            raise DiskError

    async with open_desk(world, tmp_path, key, node, on_step=on_step) as desk:
        await desk.voucher(payer, known(artifact_id("one write")), 1, ETHER)
        await desk.catch_up()
        with pytest.raises(DiskError):
            await desk.service.tick()
        assert await desk.kinds() == []
        armed = False
        steps.clear()
        await desk.service.tick()
        assert "commit" not in steps[steps.index("outbox.submit") : steps.index("settlement.sent")]
        await desk.send()
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER


async def test_the_chain_goes_away_and_comes_back(
    world: ChainWorld, tmp_path: Path, devnet_at: tuple[str, Path]
) -> None:
    key, payer = fresh_wallet("away key"), fresh_wallet("away payer")
    for account in (key, payer):
        await world.fund(account.address, 3 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, 2 * ETHER))
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(RpcProxy(devnet_at[0]))
        rpc = await stack.enter_async_context(Rpc(proxy.url, tries=1, timeout_s=2))
        desk = await stack.enter_async_context(open_desk(world, tmp_path, key, node, rpc=rpc))
        await desk.round()
        assert desk.service.health().level is Level.UP
        await desk.voucher(payer, known(artifact_id("away")), 1, ETHER)
        proxy.statuses = [503] * 1_000
        with pytest.raises((ChainError, OpenLoraError)):
            await desk.service.tick()
        assert desk.service.health().level is Level.DEGRADED
        assert await desk.kinds() == []
        proxy.statuses.clear()
        await desk.catch_up()
        await desk.service.tick()
        assert await desk.kinds() == ["redeem"]
        proxy.statuses = [503] * 1_000  # queued, and the chain is gone again: nothing is lost, nothing sent twice
        with pytest.raises(ChainError):
            await desk.outbox.step()
        proxy.statuses.clear()
        await desk.send()
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER
        assert desk.service.health().level is Level.UP


async def test_run_waits_an_outage_out_and_wakes_at_a_thaw(
    world: ChainWorld, tmp_path: Path, devnet_at: tuple[str, Path]
) -> None:
    key, payer = fresh_wallet("run key"), fresh_wallet("run payer")
    for account in (key, payer):
        await world.fund(account.address, 3 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, ETHER))
    async with open_desk(world, tmp_path, key, node) as desk:
        await desk.voucher(payer, known(artifact_id("run")), 1, 777)
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("view", desk.parts.view.run()),
                ("settlement", desk.service.run()),
                ("outbox", desk.outbox.run()),
            )
        ]
        try:
            async with asyncio.timeout(20):
                while desk.service.health().level is not Level.UP:
                    await asyncio.sleep(0)
                assert await desk.kinds() == []
                await world.send(payer, world.settlement.thaw(node, ETHER))
                while (await world.settlement.account_of(payer.address, node)).balance == ETHER:
                    await asyncio.sleep(0.01)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER - 777


async def test_a_refused_voucher_rests_and_a_newer_one_goes(world: ChainWorld, tmp_path: Path) -> None:
    """A voucher of a signer that nobody authorised is left out by the contract, and nothing is sent for it again."""
    key, payer, signer = fresh_wallet("refused key"), fresh_wallet("refused payer"), fresh_wallet("refused signer")
    for account in (key, payer):
        await world.fund(account.address, 5 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, 3 * ETHER))
    pipeline = known(artifact_id("refused"))
    async with open_desk(world, tmp_path, key, node) as desk:
        ledger = await desk.voucher(payer, pipeline, 1, ETHER, signer)
        await desk.round()
        assert await desk.kinds() == []  # seen before it is sent: the signer does not bind the payer
        deadline = (await world.rpc.head()).timestamp + 3_600
        proof = SignerProof(payer=payer.address, deadline=deadline).sign(world.domain, signer)
        await world.send(payer, world.settlement.authorize_signer(signer.address, deadline, proof.signature))
        await desk.catch_up()
        await desk.service.tick()
        assert await desk.kinds() == ["redeem"]
        # The signer is revoked and its time runs out before the transaction arrives: the contract leaves it out.
        await world.send(payer, world.settlement.thaw_signer(signer.address))
        await world.pass_time(61)
        await desk.send()
        await desk.round()
        assert await desk.kinds() == ["redeem"]
        assert desk.service.status().refused == 1
        assert (await desk.journal.ledger(ledger)).redeemed == 0
        assert (await world.settlement.account_of(payer.address, node)).balance == 3 * ETHER
        deadline = (await world.rpc.head()).timestamp + 3_600
        proof = SignerProof(payer=payer.address, deadline=deadline).sign(world.domain, signer)
        await world.send(payer, world.settlement.authorize_signer(signer.address, deadline, proof.signature))
        await desk.voucher(payer, pipeline, 2, ETHER + 5, signer)
        await desk.round()
        await desk.round()
        assert (await desk.journal.ledger(ledger)).redeemed == ETHER + 5
        assert desk.service.status().refused == 0


async def test_what_was_paid_counts_at_depth_only(world: ChainWorld, tmp_path: Path) -> None:
    key, payer = fresh_wallet("depth key"), fresh_wallet("depth payer")
    for account in (key, payer):
        await world.fund(account.address, 3 * ETHER)
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, 2 * ETHER))
    async with open_desk(world, tmp_path, key, node, confirmations=5) as desk:
        ledger = await desk.voucher(payer, known(artifact_id("depth")), 1, ETHER)
        await desk.catch_up()
        await desk.service.tick()
        await desk.outbox.step()
        await desk.catch_up()
        await desk.service.tick()
        assert (await world.settlement.account_of(payer.address, node)).balance == ETHER
        assert (await desk.journal.ledger(ledger)).redeemed == 0
        await world.mine(4)
        await desk.outbox.step()
        await desk.service.tick()
        assert (await desk.journal.ledger(ledger)).redeemed == ETHER
        assert await desk.kinds() == ["redeem"]


async def test_low_gas_is_said_with_what_to_send_where(world: ChainWorld, tmp_path: Path) -> None:
    key = fresh_wallet("poor key")
    node = await world.register_node(key)
    async with open_desk(world, tmp_path, key, node) as desk:
        await desk.round()
        health = desk.service.health()
        assert health.level is Level.DEGRADED
        assert "pays for 0 more transactions" in health.reason
        assert key.address.hex() in health.reason.lower()
        missing = int(health.reason.split(" wei")[0].rsplit(" ", 1)[1])
        await world.fund(key.address, 2 * missing)
        await desk.round()
        assert desk.service.health().level is Level.UP


async def test_our_gas_figures_are_upper_bounds_and_royalties_are_shared_out(world: ChainWorld, tmp_path: Path) -> None:
    label = "bounds"
    key = fresh_wallet(f"{label} key")
    payers = [fresh_wallet(f"{label} payer {number}") for number in range(3)]
    for account in (key, *payers):
        await world.fund(account.address, 5 * ETHER)
    base, dataset = artifact_id(f"{label} base"), artifact_id(f"{label} data")
    adapters = sorted(artifact_id(f"{label} adapter {number}") for number in range(4))
    rate = 10**21
    await world.register_artifact(OWNER, dataset, DATASET)
    await world.register_artifact(OWNER, base, BASE, rate, components=[(dataset, 500)])
    for adapter in adapters:
        await world.register_artifact(OWNER, adapter, ADAPTER, rate, components=[(dataset, 500)])
    node = await world.register_node(key)
    mix = Pipeline.of(base, *(Adapter(id=one, terms_version=1, weight=5_000) for one in adapters), base_terms_version=1)
    pipeline = KnownPipeline(mix, (rate,) * 5)
    for payer in payers:
        await world.send(payer, world.settlement.deposit(node, 4 * ETHER))
    async with open_desk(world, tmp_path, key, node) as desk:
        for number, payer in enumerate(payers):
            await desk.voucher(payer, pipeline, 100 + number, ETHER // 10)
        await desk.round()
        for payer in payers:
            await desk.voucher(payer, pipeline, 300, ETHER // 2)
        await desk.round()
        desk.epochs.roots, desk.epochs.closed = {1: b"\x01" * 32}, 1
        desk.now += 3_600
        await desk.round()
        assert sorted(await desk.kinds()) == ["anchor", "claim", "harvest", "redeem", "redeem"]
        accrued, harvested = await world.settlement.accumulator_of(node, mix.id)
        assert accrued == harvested > 0
        used: dict[str, list[int]] = {}
        for intent in (await JournalOutbox(desk.journal).recent(10))[::-1]:
            assert intent.inclusion is not None
            receipt = await world.rpc.receipt(intent.inclusion.tx_hash)
            assert receipt is not None
            used.setdefault(intent.request.kind, []).append(receipt.gas_used)
        first, again = used["redeem"]
        assert first <= BATCH_GAS + 3 * FIRST_VOUCHER_GAS + PIPELINE_GAS + 5 * PART_GAS
        assert again <= BATCH_GAS + 3 * VOUCHER_GAS
        assert used["anchor"][0] <= ANCHOR_GAS
        assert used["claim"][0] <= CLAIM_GAS
        assert used["harvest"][0] <= HARVEST_GAS
        assert COLLECT_GAS > VOUCHER_GAS
