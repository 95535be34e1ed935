"""After a crash, a lost stream, a lost journal: both sides agree again, and nothing is paid twice or unseen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openlora_node.gateway.recovery import Recovered
from openlora_node.journal import LedgerKey, Reader, spending
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.gateway_world import (
    PAYER_KEY,
    RATES,
    Clock,
    FakeChain,
    Script,
    ScriptedNode,
    World,
    world,
)


async def rows_of(w: World) -> list[spending.Spend]:
    return await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))


def folder_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


async def test_a_receipt_that_was_lost_on_the_way_is_paid_late(tmp_path: Path) -> None:
    script = Script(lose_done=True)
    async with world(tmp_path, script) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.NODE_LOST
        node = w.nodes[0]
        assert await node.owed() > 0
        assert await w.recovery.pending() == [node.node]
        # All tokens had come: the receipt holds and is paid by the voucher that answers it.
        assert await w.recovery.look(node.node) == Recovered(settled=1)
        assert await node.owed() == 0
        (row,) = await rows_of(w)
        assert row.state is spending.SpendState.PAID
        assert await w.recovery.pending() == []
        # A loss that nothing comes of is looked at again for five minutes, then let be.
        await w.purse.journal.transact(lambda tx: tx.write("test", "UPDATE spends SET state = 'lost'"))
        assert await w.recovery.pending() == [node.node]
        w.clock.now += 301
        await w.recovery.look(node.node)
        assert await w.recovery.pending() == []
        script.lose_done = False
        await w.ask(text="and another")
        await w.settle_down()
        assert await node.owed() == 0


async def test_a_debtor_is_helped_by_the_retry_itself(tmp_path: Path) -> None:
    script = Script(lose_done=True)
    async with world(tmp_path, script) as w:
        with pytest.raises(OpenLoraError):
            await w.ask()
        script.lose_done = False
        # The node refuses a debtor; the gateway looks at its account, pays, and asks again by itself.
        text, answer = await w.ask(text="and another")
        assert text
        assert answer.finished is not None
        await w.settle_down()
        assert await w.nodes[0].owed() == 0
        rows = await rows_of(w)
        assert [row.state for row in rows].count(spending.SpendState.PAID) == 2
        # The attempt in between was refused; its voucher gave no more than the first one had.
        (refused,) = [row for row in rows if row.state is spending.SpendState.LOST]
        assert refused.amount == 0


async def test_a_late_receipt_over_more_than_came_is_not_paid(tmp_path: Path) -> None:
    script = Script(lose_done=True, output=tuple(range(40)))
    async with world(tmp_path, script) as w:
        with pytest.raises(OpenLoraError):
            await w.ask()
        node = w.nodes[0]
        # As if the last tokens had been lost with the stream: what came hashes to something else.
        await w.purse.journal.transact(lambda tx: tx.write("test", "UPDATE spends SET received = ?", b"\x13" * 32))
        assert (await w.recovery.look(node.node)).disputed == 1
        assert w.recovery.disputed == {node.node: 1}
        (row,) = await rows_of(w)
        assert row.state is spending.SpendState.LOST
        assert "output hash" in (row.note or "")
        assert await node.owed() > 0


async def killed_mid_stream(tmp_path: Path, output: int, seen: int) -> tuple[ScriptedNode, FakeChain, Clock, Path]:
    """A gateway that died while tokens came: the node goes on, cancels at the lost stream, keeps its receipt."""
    clock, chain = Clock(), FakeChain()
    folder = folder_of(tmp_path, "life")
    hold = asyncio.Event()
    script = Script(output=tuple(range(output)), hold=hold, unpaid_tokens=1_024)
    node = ScriptedNode(1, folder, clock, script)
    async with world(folder, nodes=[node], chain=chain, clock=clock) as w:
        answer = w.payer.start(await w.prepare(max_tokens=output))
        hold.set()
        count = 0
        async for piece in answer:
            count += len(piece.token_ids)
            if count >= seen:
                break
        # The process is gone: no cancel, no give-up, nothing more is written.
        for task in list(w.requests._tasks):
            task.cancel()
        saved = (folder / "payer.sqlite").read_bytes(), (folder / "payer.sqlite-wal").read_bytes()
        await asyncio.sleep(0)
        for exchange in w.street.exchanges:
            exchange.cancelled = True
        while node.open:
            await asyncio.sleep(0)
    (folder / "payer.sqlite").write_bytes(saved[0])
    (folder / "payer.sqlite-wal").write_bytes(saved[1])
    (folder / "payer.sqlite-shm").unlink(missing_ok=True)
    return node, chain, clock, folder


async def test_a_killed_gateway_pays_what_it_had_ordered(tmp_path: Path) -> None:
    node, chain, clock, folder = await killed_mid_stream(tmp_path, 200, 40)
    async with world(folder, nodes=[node], chain=chain, clock=clock) as w:
        (row,) = await rows_of(w)
        assert row.state is spending.SpendState.OPEN
        assert await w.purse.interrupted() == 1
        (row,) = await rows_of(w)
        assert row.state is spending.SpendState.LOST
        prompt = RATES.micro_wei(row.prompt_tokens, 0) // 10**6
        assert row.amount >= prompt
        assert await w.recovery.look(node.node) == Recovered(settled=1)
        assert await node.owed() == 0
        (row,) = await rows_of(w)
        assert row.state is spending.SpendState.PAID
        await w.ask(text="after the crash", max_tokens=20)
        await w.settle_down()
        assert await node.owed() == 0
    await node.journal.close()


async def test_a_killed_gateway_believes_no_more_than_can_have_been_unpaid(tmp_path: Path) -> None:
    node, chain, clock, folder = await killed_mid_stream(tmp_path, 200, 40)
    async with world(folder, nodes=[node], chain=chain, clock=clock) as w:
        await w.purse.interrupted()
        import openlora_node.gateway.recovery as module

        module_limit, module.UNPAID_TOKENS = module.UNPAID_TOKENS, 8
        try:
            assert (await w.recovery.look(node.node)).disputed == 1
        finally:
            module.UNPAID_TOKENS = module_limit
        assert await node.owed() > 0
    await node.journal.close()


async def test_a_lost_journal_goes_on_where_the_node_shows_what_was_signed(tmp_path: Path) -> None:
    clock, chain = Clock(), FakeChain()
    first, second = folder_of(tmp_path, "first"), folder_of(tmp_path, "second")
    node = ScriptedNode(1, tmp_path, clock, Script())
    async with world(first, nodes=[node], chain=chain, clock=clock) as w:
        for number in range(3):
            await w.ask(text=f"number {number}")
        pipeline = (await w.prepare()).pipeline.id
    before = await node.ledger(pipeline)
    # Another journal, empty: the opening voucher is below what the node holds.
    async with world(second, nodes=[node], chain=chain, clock=clock) as w:
        _, answer = await w.ask(text="after the loss")
        assert answer.finished is not None
        fee = answer.finished.receipt.fee
        await w.settle_down()
        after = await node.ledger(pipeline)
        assert after.fee == before.fee + fee
        assert await node.owed() == 0
        with Reader(w.purse.journal.path) as reader:
            assert reader.violations(deep=True) == []
        # The settlement charge was paid in the first life and is not accepted again.
        assert fee < 10**9
        ours = await w.purse.journal.ledger(LedgerKey(PAYER_KEY.address, node.node, PAYER_KEY.address, pipeline))
        assert ours.voucher == after.voucher
    await node.journal.close()


async def test_receipts_for_requests_that_nobody_here_knows_are_not_paid(tmp_path: Path) -> None:
    clock, chain = Clock(), FakeChain()
    first, second = folder_of(tmp_path, "first"), folder_of(tmp_path, "second")
    node = ScriptedNode(1, tmp_path, clock, Script())
    async with world(first, nodes=[node], chain=chain, clock=clock) as w:
        await w.ask()
        node.script.lose_done = True
        with pytest.raises(OpenLoraError):
            await w.ask(text="lost")
    node.script.lose_done = False
    async with world(second, nodes=[node], chain=chain, clock=clock) as w:
        found = await w.recovery.look(node.node)
        assert (found.settled, found.disputed, found.adopted) == (0, 1, 1)
        with pytest.raises(OpenLoraError) as caught:
            await w.ask(text="a debtor is served no more")
        assert caught.value.code is ErrorCode.VOUCHER_TOO_LOW
    await node.journal.close()


async def test_a_node_that_shows_a_voucher_we_never_signed_is_told_apart(tmp_path: Path) -> None:
    from openlora_node.protocol import messages
    from openlora_node.protocol.structs import Voucher
    from support.gateway_world import DOMAIN, STRANGER

    async with world(tmp_path) as w:
        await w.ask()
        node = w.nodes[0]
        account = await node.account()
        (shown,) = account.ledgers
        forged = Voucher(
            payer=PAYER_KEY.address,
            node=node.node,
            pipeline_id=(await w.prepare()).pipeline.id,
            cumulative_tokens=10**9,
            cumulative_compute=10**12,
            reference_digest=bytes(32),
        ).sign(DOMAIN, STRANGER)
        import msgspec

        lie = messages.Account(
            ledgers=(msgspec.structs.replace(shown, voucher=forged.pack()),), open_receipts=account.open_receipts
        )

        async def account_lie() -> messages.Account:
            return lie

        node.account = account_lie  # type: ignore[method-assign]
        with pytest.raises(OpenLoraError, match="did not sign"):
            await w.recovery.look(node.node)
        await w.recovery.try_look(node.node)  # no news


async def test_our_newer_voucher_is_handed_in_again(tmp_path: Path) -> None:
    async with world(tmp_path, Script(output=tuple(range(12)))) as w:
        node = w.nodes[0]
        take = node._take

        async def deaf(packed: bytes) -> int:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the voucher did not arrive")

        node._take = deaf  # type: ignore[method-assign]
        await w.ask()
        await w.settle_down()
        assert await node.owed() > 0
        node._take = take  # type: ignore[method-assign]
        await w.recovery.look(node.node)
        assert await node.owed() == 0
