"""What a node's receipts come to for each dataset, epoch by epoch: what it earned, and who is credited with how much.

A closed epoch takes no receipt any more: its sums are made once. Reads the journal and blocks; call it from a thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..journal import Reader, StoredReceipt
from .epochs import Epochs
from .export import evidence_of
from .indexed import UNIT, read_datasets
from .leaves import number

MAX_CACHED = 2_048
DATASET = "dataset"


@dataclass
class DatasetSums:
    """One dataset over some receipts. `royalties` in wei; `credits` are wei · UNIT by contributor, exact."""

    royalties: int = 0
    credits: dict[bytes, int] = field(default_factory=dict)

    def add(self, other: DatasetSums) -> None:
        """Sum two."""
        self.royalties += other.royalties
        for owner, amount in other.credits.items():
            self.credits[owner] = self.credits.get(owner, 0) + amount

    def rows(self) -> tuple[tuple[bytes, int], ...]:
        """(contributor, wei), ascending; each rounded down, nobody with nothing."""
        return tuple((owner, amount // UNIT) for owner, amount in sorted(self.credits.items()) if amount >= UNIT)


def sums_of(facts: Iterable[Mapping[str, bytes]]) -> dict[bytes, DatasetSums]:
    """Dataset → sums over receipts' attribution leaves, named or traced. Raises RECEIPT_INVALID, KeyError."""
    found: dict[bytes, DatasetSums] = {}
    for leaves in facts:
        for name, value in leaves.items():
            if name.split("/")[-2:-1] == [DATASET]:
                found.setdefault(value, DatasetSums()).royalties += number(leaves[f"{name}/royalty"])
        for traced in read_datasets(leaves):
            sums = found[traced.dataset]
            for owner, amount in traced.credited():
                sums.credits[owner] = sums.credits.get(owner, 0) + amount
    return found


class Periods:
    """The sums of closed epochs of one node."""

    def __init__(self, reader: Reader, epochs: Epochs) -> None:
        self._reader = reader
        self._epochs = epochs
        self._known: OrderedDict[int, dict[bytes, DatasetSums]] = OrderedDict()

    def since(self, first: int, now: int) -> list[tuple[int, dict[bytes, DatasetSums]]]:
        """(epoch, sums by dataset) of every closed epoch from `first` on that has a receipt, ascending."""
        closed = self._epochs.newest_closed(now)
        found: list[tuple[int, dict[bytes, DatasetSums]]] = []
        at = self._epochs.next_with_receipts(first)
        while at is not None and at <= closed:
            found.append((at, self.sums(at)))
            at = self._epochs.next_with_receipts(at + 1)
        return found

    def sums(self, number: int) -> dict[bytes, DatasetSums]:
        """Of one closed epoch."""
        if number not in self._known:
            self._known[number] = sums_of(self._facts(stored) for stored in self._epochs.receipts(number))
            while len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        return self._known[number]

    def newest_closed(self, now: int) -> int:
        """The newest epoch to which no receipt can be added any more."""
        return self._epochs.newest_closed(now)

    def epoch_at(self, time: int) -> int:
        """The epoch that a unix second lies in."""
        return self._epochs.number_at(time)

    def _facts(self, stored: StoredReceipt) -> Mapping[str, bytes]:
        return {leaf.name: leaf.value for leaf in evidence_of(self._reader, stored).attribution}
