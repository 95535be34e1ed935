"""The epochs of a node's receipts: which receipts one anchor covers, their Merkle root, and what they come to.

Epoch N holds the receipts that finished from N·E up to (N + 1)·E unix seconds, E being the epoch's length. A node's
receipts finish in the order of their sequence numbers, so an epoch is one run of the chain and is found by halving.
An epoch is closed once its end lies further back than the clock may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..journal import StoredReceipt
from ..protocol.merkle import MerkleTree, receipt_leaf
from ..protocol.structs import CLOCK_SKEW_S

PAGE = 1_000


@dataclass(frozen=True)
class EpochTotals:
    """What an epoch's receipts come to, as the anchor contract takes it. Amounts in wei."""

    count: int
    first_seq: int
    last_seq: int
    tokens: int
    compute: int
    royalties: int


@dataclass(frozen=True)
class EpochRoot:
    """One epoch, ready to be anchored. `count` is at least 1: an empty epoch has no root."""

    number: int
    root: bytes
    totals: EpochTotals


class ReceiptSource(Protocol):
    """Where receipts are read: a journal's Reader."""

    def receipts(self, node: bytes, after_seq: int, limit: int) -> list[StoredReceipt]:
        """A node's receipts past `after_seq` in the order of the chain, at most `limit`."""
        ...

    def newest_receipt(self, node: bytes) -> StoredReceipt | None:
        """The newest receipt of a node."""
        ...


class Epochs:
    """Reads the journal and blocks as SQLite does: call it from a thread, or where that does not matter."""

    def __init__(self, source: ReceiptSource, node: bytes, length_s: int) -> None:
        self._source = source
        self._node = node
        self.length_s = length_s

    def number_at(self, time: int) -> int:
        """The epoch that a unix second lies in."""
        return time // self.length_s

    def newest_closed(self, now: int) -> int:
        """The newest epoch to which no receipt can be added any more."""
        return (now - CLOCK_SKEW_S) // self.length_s - 1

    def receipts(self, number: int) -> Iterator[StoredReceipt]:
        """An epoch's receipts in the order of the chain."""
        end = (number + 1) * self.length_s
        after = self._first_seq(number * self.length_s) - 1
        while page := self._source.receipts(self._node, after, PAGE):
            for stored in page:
                if stored.receipt.value.finished_at >= end:
                    return
                yield stored
            after = page[-1].receipt.value.seq

    def root(self, number: int) -> EpochRoot | None:
        """Root and totals of an epoch; None if no receipt finished in it."""
        found = list(self.receipts(number))
        if not found:
            return None
        values = [stored.receipt.value for stored in found]
        totals = EpochTotals(
            count=len(values),
            first_seq=values[0].seq,
            last_seq=values[-1].seq,
            tokens=sum(value.tokens for value in values),
            compute=sum(value.compute for value in values),
            royalties=sum(value.royalties for value in values),
        )
        return EpochRoot(number, _tree(found).root, totals)

    def next_with_receipts(self, number: int) -> int | None:
        """The first epoch from `number` on that has a receipt; None if there is none yet. Says which to anchor next."""
        first = self._first_seq(number * self.length_s)
        found = self._source.receipts(self._node, first - 1, 1)
        return self.number_at(found[0].receipt.value.finished_at) if found else None

    def first_seq(self, number: int) -> int:
        """The least sequence number of a receipt that finished in epoch `number` or later, or of the next one."""
        return self._first_seq(number * self.length_s)

    def proof(self, stored: StoredReceipt) -> tuple[bytes, ...]:
        """The path from a receipt's leaf to the root of its epoch."""
        return self.tree(self.number_at(stored.receipt.value.finished_at)).proof(leaf_of(stored))

    def tree(self, number: int) -> MerkleTree:
        """The tree of an epoch that has a receipt. An epoch of 100,000 takes 20 MB."""
        return _tree(list(self.receipts(number)))

    def _first_seq(self, time: int) -> int:
        """The least sequence number whose receipt, or the next one, finished at `time` or later."""
        newest = self._source.newest_receipt(self._node)
        if newest is None:
            return 0
        low, high = 0, newest.receipt.value.seq + 1
        while low < high:
            middle = (low + high) // 2
            found = self._source.receipts(self._node, middle - 1, 1)
            if found and found[0].receipt.value.finished_at < time:
                low = found[0].receipt.value.seq + 1
            else:
                high = middle
        return low


def leaf_of(stored: StoredReceipt) -> bytes:
    """A receipt's leaf in its epoch's tree."""
    return receipt_leaf(stored.salt, stored.digest)


def _tree(found: list[StoredReceipt]) -> MerkleTree:
    return MerkleTree(map(leaf_of, found))
