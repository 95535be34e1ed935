"""Epochs: every receipt in exactly one, found by halving, with the root and totals that the contract takes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from openlora_node.attribution import Epochs
from openlora_node.attribution import epochs as module
from openlora_node.journal import Reader, StoredReceipt
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.merkle import receipt_leaf, verify_proof
from openlora_node.protocol.structs import Receipt
from support.attribution_receipts import draft, fill
from support.journal import DOMAIN
from support.serving_world import NODE


@cache
def template() -> Receipt:
    return draft().receipt.value


@dataclass
class Fake:
    """A chain of receipts in memory; counts what is read."""

    stored: list[StoredReceipt]
    reads: int = 0

    def receipts(self, node: bytes, after_seq: int, limit: int) -> list[StoredReceipt]:
        self.reads += 1
        return [one for one in self.stored if one.receipt.value.seq > after_seq][:limit]

    def newest_receipt(self, node: bytes) -> StoredReceipt | None:
        return self.stored[-1] if self.stored else None


def chain(steps: list[tuple[int, int]]) -> Fake:
    """Receipts by (gap in seq, seconds later)."""
    seq, time, found = 1 << 50, 1_000_000, []
    for gap, later in steps:
        seq, time = seq + 1 + gap, time + later
        import msgspec

        value = msgspec.structs.replace(template(), seq=seq, started_at=0, finished_at=time)
        found.append(
            StoredReceipt(Signed(value, b"\x01" * 64 + b"\x1b"), value.digest(DOMAIN), seq.to_bytes(32, "big"))
        )
    return Fake(found)


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 90)), max_size=30))
def test_every_receipt_is_in_exactly_one_epoch(steps: list[tuple[int, int]]) -> None:
    source = chain(steps)
    epochs = Epochs(source, NODE, 60)
    seen = []
    number = 0
    while (found := epochs.next_with_receipts(number)) is not None:
        root = epochs.root(found)
        assert root is not None
        inside = list(epochs.receipts(found))
        assert all(found * 60 <= one.receipt.value.finished_at < (found + 1) * 60 for one in inside)
        assert root.totals.count == len(inside)
        assert (root.totals.first_seq, root.totals.last_seq) == (
            inside[0].receipt.value.seq, inside[-1].receipt.value.seq,
        )  # fmt: skip
        later = [one.receipt.value.seq for one in source.stored if one.receipt.value.seq >= epochs.first_seq(found + 1)]
        assert len(later) == len(source.stored) - len(seen) - len(inside), "what no root up to this epoch holds"
        assert root.totals.compute == sum(one.receipt.value.compute for one in inside)
        for one in inside:
            assert verify_proof(root.root, receipt_leaf(one.salt, one.digest), epochs.proof(one))
        seen += inside
        number = found + 1
    assert seen == source.stored


def test_an_epoch_is_found_without_reading_the_chain() -> None:
    source = chain([(5, 1)] * 500)
    epochs = Epochs(source, NODE, 60)
    source.reads = 0
    assert epochs.root(1_000_240 // 60) is not None
    assert source.reads < 70


def test_an_empty_epoch_has_no_root() -> None:
    assert Epochs(chain([]), NODE, 60).root(5) is None
    assert Epochs(chain([]), NODE, 60).next_with_receipts(0) is None


def test_an_epoch_closes_once_its_end_is_a_minute_past() -> None:
    epochs = Epochs(chain([]), NODE, 3600)
    assert epochs.newest_closed(2 * 3600 + 59) == 0
    assert epochs.newest_closed(2 * 3600 + 60) == 1


def test_pages_join(monkeypatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    source = chain([(0, 0)] * 10)
    assert list(Epochs(source, NODE, 60).receipts(1_000_000 // 60)) == source.stored


async def test_epochs_of_a_real_journal(tmp_path: Path) -> None:
    await fill(tmp_path / "j.sqlite", [0, 10, 100, 130])

    def read() -> None:
        with Reader(tmp_path / "j.sqlite") as reader:
            epochs = Epochs(reader, NODE, 60)
            everything = reader.receipts(NODE, 0, 100)
            numbers = sorted({epochs.number_at(one.receipt.value.finished_at) for one in everything})
            assert [one for number in numbers for one in epochs.receipts(number)] == everything

    await asyncio.to_thread(read)


async def test_receipts_finish_in_order_even_if_the_clock_goes_back(tmp_path: Path) -> None:
    world = await fill(tmp_path / "j.sqlite", [50, 0, 20])
    with Reader(tmp_path / "j.sqlite") as reader:
        times = [one.receipt.value.finished_at for one in reader.receipts(NODE, 0, 100)]
    assert times == sorted(times)
    assert replace(world.payer) == world.payer
