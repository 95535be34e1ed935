"""Which ledgers a round looks at: the largest, the hurried, and every other one in its turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.journal import LedgerKey
from openlora_node.journal.pipelines import KnownPipeline, remember
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.settlement import rows
from openlora_node.settlement.rows import Turn, Unpaid
from support.journal import NODE, NOW, open_journal, request, respond, signer, voucher

KNOWN = KnownPipeline(Pipeline.of(b"\x0b" * 32), (2_000_000,))
PAYERS = 12
DEBT = {"debt_allowed": 1 << 60}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGEST", 2)
    monkeypatch.setattr(rows, "IN_TURN", 3)


async def test_every_ledger_has_its_turn(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "node.sqlite") as journal:
        await journal.transact(lambda tx: remember(tx, KNOWN.pipeline.id, KNOWN))
        for number in range(PAYERS):
            entry = voucher(10, 100 + number, payer=number, pipeline=KNOWN.pipeline.id)
            await journal.advance_voucher(entry)

        async def look(turn: Turn, now: int = NOW) -> tuple[list[Unpaid], Turn]:
            return await journal.transact(lambda tx: rows.unpaid(tx, NODE, now, turn))

        seen: set[LedgerKey] = set()
        turn = Turn()
        for round_number in range(PAYERS // 3 + 1):
            found, turn = await look(turn, NOW + round_number)
            assert len(found) <= 5
            values = [item.ledger.voucher_value for item in found]
            assert max(values) == 100 + PAYERS - 1 + 20
            seen |= {item.ledger.key for item in found}
        assert len(seen) == PAYERS
        assert turn == Turn()
        # What was seen before is due since then.
        again, _ = await look(Turn(), NOW + 1_000)
        assert all(item.since < NOW + 100 for item in again)
        smallest = signer(0).address
        found, _ = await look(Turn(after=(b"\xff" * 20, b"", b"", b""), payers=(smallest,)))
        assert found[0].ledger.key.payer == smallest
        # Paid: not looked at, and no longer noted.
        for item in again:
            await journal.record_redeemed(item.ledger.key, item.ledger.voucher_value)
        left, _ = await look(Turn())
        assert not {item.ledger.key for item in left} & {item.ledger.key for item in again}
        noted = await journal.transact(lambda tx: tx.one("SELECT count(*) FROM redemptions"))
        assert noted == (PAYERS - len(again),)


async def test_receipts_are_counted_from_a_sequence_number_on(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "node.sqlite") as journal:

        async def count(seq: int) -> int:
            return await journal.transact(lambda tx: rows.receipts_from(tx, NODE, seq))

        assert await count(0) == 0
        for number in range(3):
            await respond(journal, request(number), **DEBT)
        first = (await journal.transact(lambda tx: tx.one("SELECT min(seq) FROM receipts")))[0]
        assert [await count(first + step) for step in (0, 1, 2, 3)] == [3, 2, 1, 0]
        assert await journal.transact(lambda tx: rows.receipts_from(tx, bytes(32), 0)) == 0
