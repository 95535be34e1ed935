"""Who fetches which chunks of an artifact: ranges claimed, stolen from the slow, given back by the lost. Pure.

Every chunk that is still missing belongs to exactly one claim or to nobody. A source that has nothing left to claim
takes half of what the busiest one still has to deliver; whichever copy comes first counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

MIN_CLAIM = 4
FIRST_CLAIM = 16
MAX_CLAIM = 256
TARGET_S = 1.0
"""A claim is about what its source delivers in this time: long enough that the pause between two does not count."""


@dataclass(frozen=True)
class Claim:
    """Chunks `first` to `first + count - 1` of a file, to be asked for at once."""

    file: int
    first: int
    count: int


@dataclass
class _Held:
    file: int
    next: int
    """The first chunk not delivered yet."""
    end: int
    """Where this source's duty ends; it moves down when another takes the rest over."""
    asked: int
    """Where what it was asked for ends."""


class Plan:
    """What is missing and who brings it. A source is any hashable value and has one claim at a time."""

    def __init__(self, missing: Iterable[tuple[int, int, int]]) -> None:
        """`missing`: (file, first chunk, number of chunks), disjoint."""
        self._free: deque[Claim] = deque(Claim(*part) for part in missing if part[2] > 0)
        self._held: dict[Hashable, _Held] = {}
        self._wanted = {
            (part.file, index) for part in self._free for index in range(part.first, part.first + part.count)
        }

    def __len__(self) -> int:
        """Chunks still missing."""
        return len(self._wanted)

    def wants(self, file: int, index: int) -> bool:
        """Whether a chunk is still missing."""
        return (file, index) in self._wanted

    def claim(self, source: Hashable, most: int) -> Claim | None:
        """Up to `most` chunks of one file for `source` to ask for; None when there is nothing to take over now."""
        assert source not in self._held, "a source finishes one claim before the next"
        while self._free:
            part = self._free.popleft()
            first, end = self._trim(part.file, part.first, part.first + part.count)
            if first == end:
                continue
            cut = min(end, first + max(1, most))
            if cut < end:
                self._free.appendleft(Claim(part.file, cut, end - cut))
            return self._hold(source, part.file, first, cut)
        return self._steal(source, most)

    def arrived(self, source: Hashable, file: int, index: int) -> None:
        """A chunk was kept."""
        self._wanted.discard((file, index))
        held = self._held.get(source)
        if held is not None and held.file == file and held.next <= index:
            held.next = index + 1

    def is_useful(self, source: Hashable) -> bool:
        """Whether anything that `source` was asked for and has not delivered is still missing."""
        held = self._held.get(source)
        return held is not None and any(self.wants(held.file, index) for index in range(held.next, held.asked))

    def release(self, source: Hashable) -> None:
        """`source` is done with its claim, or lost: what it did not deliver is free again."""
        held = self._held.pop(source, None)
        if held is not None:
            first, end = self._trim(held.file, held.next, held.end)
            if first < end:
                self._free.appendleft(Claim(held.file, first, end - first))

    def _steal(self, source: Hashable, most: int) -> Claim | None:
        richest, left = None, 0
        for held in self._held.values():
            first, end = self._trim(held.file, held.next, held.end)
            if end - first > left:
                richest, left = held, end - first
        if richest is None:
            return None
        first, end = self._trim(richest.file, richest.next, richest.end)
        count = min(max(1, most), (left + 1) // 2)
        # What lies beyond `end` has arrived already, so that the two duties together are what the one was.
        richest.end = end - count
        return self._hold(source, richest.file, end - count, end)

    def _hold(self, source: Hashable, file: int, first: int, end: int) -> Claim:
        self._held[source] = _Held(file, first, end, end)
        return Claim(file, first, end - first)

    def _trim(self, file: int, first: int, end: int) -> tuple[int, int]:
        """The range without what has arrived at either end."""
        while first < end and (file, first) not in self._wanted:
            first += 1
        while first < end and (file, end - 1) not in self._wanted:
            end -= 1
        return first, end


def claim_size(chunks_per_s: float | None) -> int:
    """How many chunks to ask a source for, by its measured speed; None while it is unknown."""
    if chunks_per_s is None:
        return FIRST_CLAIM
    return max(MIN_CLAIM, min(MAX_CLAIM, int(chunks_per_s * TARGET_S)))
