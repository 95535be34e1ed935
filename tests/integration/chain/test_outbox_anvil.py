"""The outbox on a real chain: every payment arrives once, in spite of load, reorgs, lost transactions and rivals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.policy import Rules
from openlora_chain.rpc import Rpc
from openlora_chain.store import IntentState, Order
from openlora_chain.transaction import UnsignedTransaction
from openlora_node.journal import Journal
from openlora_node.journal.outbox import JournalOutbox
from support.anvil import CHAIN_ID, CONFIRMATIONS, ETHER, Bench, payment, recipient
from support.journal import open_journal
from support.simchain import HOT, TARGET

pytestmark = pytest.mark.slow


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path / "node.sqlite") as journal:
        yield journal


@pytest.fixture
def store(journal: Journal) -> JournalOutbox:
    return JournalOutbox(journal)


async def test_fifty_concurrent_intents_become_fifty_transactions_without_a_gap(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    await asyncio.gather(*(bench.outbox.submit(payment(number)) for number in range(50)))
    await asyncio.gather(*(bench.outbox.submit(payment(number)) for number in range(50)))  # wanting it twice is one
    await bench.outbox.step()
    assert bench.outbox.status.in_flight == 16
    await bench.settle()
    await bench.check_paid_once(50)
    assert await rpc.nonce(HOT.address) == 50
    nonces = sorted(intent.nonce for intent in await store.recent(100) if intent.nonce is not None)
    assert nonces == list(range(50))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
async def test_a_reorg_puts_payments_back_and_they_arrive_once(rpc: Rpc, store: JournalOutbox, depth: int) -> None:
    bench = Bench(rpc, store)
    await bench.mine(10)
    for number in range(5):
        await bench.outbox.submit(payment(number))
        await bench.outbox.step()
        await bench.mine()
    await bench.outbox.step()
    assert bench.outbox.status.mined == 5
    await rpc.request("anvil_reorg", depth, [])
    await rpc.request("anvil_dropAllTransactions")
    assert await rpc.nonce(HOT.address) == 5 - depth
    await bench.outbox.step()
    assert bench.outbox.status.mined == 5 - depth
    await bench.settle()
    await bench.check_paid_once(5)
    assert await rpc.nonce(HOT.address) == 5


async def test_dropped_transactions_are_sent_again_and_slow_ones_replaced(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    for number in range(3):
        await bench.outbox.submit(payment(number))
    await bench.outbox.step()
    await rpc.request("anvil_dropAllTransactions")
    bench.now += 61
    await bench.outbox.step()
    replaced = [intent for intent in await store.recent(10) if len(intent.attempts) == 2]
    assert [intent.nonce for intent in replaced] == [0]  # only the one that holds up the rest is made dearer
    first, second = replaced[0].attempts
    assert second.max_fee * 5 >= first.max_fee * 6
    await bench.settle()
    await bench.check_paid_once(3)


async def test_replacements_stop_at_five(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    await bench.outbox.submit(payment(0))
    for _ in range(10):
        await bench.outbox.step()
        bench.now += 61
    (intent,) = await store.recent(1)
    assert len(intent.attempts) == 6
    await bench.settle()
    await bench.check_paid_once(1)


async def test_a_rival_with_the_same_key_costs_nothing_but_time(rpc: Rpc, store: JournalOutbox, tmp_path: Path) -> None:
    async with open_journal(tmp_path / "rival.sqlite") as other:
        bench, rival = Bench(rpc, store), Bench(rpc, JournalOutbox(other))
        for number in range(6):
            await bench.outbox.submit(payment(number))
            await rival.outbox.submit(payment(100 + number))
        await asyncio.gather(bench.outbox.step(), rival.outbox.step())
        for _ in range(60):
            await bench.mine()
            bench.now, rival.now = bench.now + 5, rival.now + 5
            await bench.outbox.step()
            await rival.outbox.step()
        assert await bench.states() == await rival.states() == {IntentState.FINAL: 6}
        await bench.check_paid_once(6)
        await bench.check_paid_once(6, first=100)
        assert await rpc.nonce(HOT.address) == 12
        assert bench.outbox.status.foreign_nonces + rival.outbox.status.foreign_nonces > 0


async def test_foreign_use_of_the_key_is_noticed_and_survived_without_restart(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    await bench.outbox.submit(payment(0))
    await bench.outbox.step()
    fee = 100 * 10**9
    foreign = UnsignedTransaction(CHAIN_ID, 0, TARGET, 1, b"", 21_000, fee, fee)
    await rpc.send_raw((await HOT.sign_transaction(foreign)).raw)
    await bench.mine(CONFIRMATIONS)
    await bench.outbox.step()
    assert bench.outbox.status.foreign_nonces == 1
    await bench.settle()
    await bench.check_paid_once(1)
    assert await rpc.nonce(HOT.address) == 2


async def test_too_little_money_waits_and_says_how_much_is_missing(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    await rpc.request("anvil_setBalance", f"0x{HOT.address.hex()}", hex(ETHER))
    await bench.outbox.submit(payment(0, 5 * ETHER))
    await bench.outbox.submit(payment(1))
    await bench.outbox.step()
    blocked = await store.find(payment(0, 5 * ETHER).id)
    assert blocked is not None
    assert blocked.state is IntentState.QUEUED
    assert blocked.note
    assert "wei" in blocked.note
    assert bench.outbox.status.in_flight == 1  # what can be paid for is sent
    await rpc.request("anvil_setBalance", f"0x{HOT.address.hex()}", hex(100 * ETHER))
    bench.now += 3_600
    await bench.settle()
    assert await rpc.balance(recipient(0)) == 5 * ETHER


async def test_the_wrong_chain_gets_nothing(start_anvil, store: JournalOutbox) -> None:  # type: ignore[no-untyped-def]
    other = await start_anvil("--no-mining", chain_id=99)
    async with Rpc(other.url) as rpc:
        bench = Bench(rpc, store)
        await bench.outbox.submit(payment(0))
        with pytest.raises(ChainError) as error:
            await bench.outbox.step()
        assert error.value.code is ChainErrorCode.WRONG_CHAIN
        (intent,) = await store.recent(1)
        assert intent.attempts == ()


async def test_orders_cancel_bump_and_resend(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store, rules=Rules(confirmations=CONFIRMATIONS, max_in_flight=2))
    for number in range(4):
        await bench.outbox.submit(payment(number))
    await bench.outbox.step()
    await bench.outbox.order(payment(0).id, Order.CANCEL)  # in flight: its nonce is spent on nothing
    await bench.outbox.order(payment(1).id, Order.BUMP)
    await bench.outbox.order(payment(3).id, Order.CANCEL)  # queued: goes at once
    await bench.outbox.step()
    await bench.settle()
    assert [await rpc.balance(recipient(number)) for number in range(4)] == [0, ETHER // 1000, ETHER // 1000, 0]
    bumped = await store.find(payment(1).id)
    assert bumped is not None
    assert len(bumped.attempts) == 2
    await bench.outbox.order(payment(0).id, Order.RESEND)
    await bench.settle()
    assert await rpc.balance(recipient(0)) == ETHER // 1000
    with pytest.raises(ChainError) as error:
        await bench.outbox.order(payment(0).id, Order.RESEND)  # what was paid is never paid again
    assert error.value.code is ChainErrorCode.INTENT_STATE


async def test_one_subject_with_two_contents_is_refused(rpc: Rpc, store: JournalOutbox) -> None:
    bench = Bench(rpc, store)
    await bench.outbox.submit(payment(0))
    with pytest.raises(ChainError) as error:
        await bench.outbox.submit(payment(0, value=1))
    assert error.value.code is ChainErrorCode.INTENT_CONFLICT


async def test_run_sends_what_is_submitted_while_blocks_come_by_themselves(start_anvil, journal: Journal) -> None:  # type: ignore[no-untyped-def]
    anvil = await start_anvil("--block-time", "1", "--mixed-mining")
    async with Rpc(anvil.url) as rpc:
        await rpc.request("anvil_setBalance", f"0x{HOT.address.hex()}", hex(ETHER))
        bench = Bench(rpc, JournalOutbox(journal), rules=Rules(confirmations=2))
        task = asyncio.create_task(bench.outbox.run())
        bench.outbox._poll_s = 0.1
        await bench.outbox.submit(payment(0))
        async with asyncio.timeout(20):
            intent = await bench.outbox.wait(payment(0).id)
        assert intent.state is IntentState.FINAL
        task.cancel()
