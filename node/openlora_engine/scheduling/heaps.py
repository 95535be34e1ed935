"""A min-heap whose items may change rank or leave at any time. Knows nothing of what it orders."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SLACK = 64
"""Stale entries a heap may carry before it is rebuilt, beyond one for each item."""


class LazyHeap(Generic[T]):
    """Hashable items in the order of `rank(item)`: push, discard and peek in O(log n), amortised.

    Ranks may grow silently (an entry is re-ranked when it surfaces); an item whose rank may have fallen must be pushed
    again. Equal ranks leave in the order they were pushed. Stale entries never outnumber the items by more than a
    constant, so that memory follows the number of items, whatever came and went.
    """

    def __init__(self, rank: Callable[[T], Any]) -> None:
        self._rank = rank
        self._heap: list[tuple[Any, int, T]] = []
        self._entry: dict[T, int] = {}
        """Item -> the number of its one valid entry."""
        self._count = 0

    def __len__(self) -> int:
        """Items held."""
        return len(self._entry)

    def __contains__(self, item: T) -> bool:
        """Whether the heap holds `item`."""
        return item in self._entry

    def __iter__(self) -> Iterator[T]:
        """The items, in no order of rank."""
        return iter(self._entry)

    def push(self, item: T) -> None:
        """Add `item`, or rank it anew."""
        self._count += 1
        self._entry[item] = self._count
        heapq.heappush(self._heap, (self._rank(item), self._count, item))
        self._compact()

    def discard(self, item: T) -> bool:
        """Take `item` out; False if it was not in."""
        if self._entry.pop(item, None) is None:
            return False
        self._compact()
        return True

    def peek(self) -> T | None:
        """The item of least rank; None when empty."""
        while self._heap:
            rank, number, item = self._heap[0]
            if self._entry.get(item) != number:
                heapq.heappop(self._heap)
                continue
            current = self._rank(item)
            if current == rank:
                return item
            heapq.heapreplace(self._heap, (current, number, item))
        return None

    def pop(self) -> T:
        """Take out the item of least rank. Raises IndexError when empty."""
        item = self.peek()
        if item is None:
            raise IndexError("pop from an empty heap")
        heapq.heappop(self._heap)
        del self._entry[item]
        return item

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._entry) + _SLACK:
            self._heap = [(self._rank(item), number, item) for item, number in self._entry.items()]
            heapq.heapify(self._heap)
