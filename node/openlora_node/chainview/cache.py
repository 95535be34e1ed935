"""A bounded cache of chain reads: one read in flight a key, two ages, invalidated by events. Knows no chain.

Younger than `fresh_s` an answer is given as it is. Older, it is read again; where that fails, an answer younger than
`stale_s` still serves. An answer whose key was dropped while it was being read is given to who waits and not kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..protocol.errors import OpenLoraError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Held(Generic[V]):
    value: V
    read_at: float
    mark: object


class Cache(Generic[K, V]):
    """Used from one event loop. `clock` gives seconds that only grow."""

    def __init__(
        self,
        name: str,
        read: Callable[[K], Awaitable[V]],
        clock: Callable[[], float],
        *,
        size: int,
        fresh_s: float,
        stale_s: float,
    ) -> None:
        self._name = name
        self._read = read
        self._clock = clock
        self._size = size
        self._fresh_s = fresh_s
        self.stale_s = stale_s
        self._held: OrderedDict[K, _Held[V]] = OrderedDict()
        self._reading: dict[K, asyncio.Task[V]] = {}

    def __repr__(self) -> str:
        return f"Cache({self._name!r}, {len(self._held)} held, {len(self._reading)} being read)"

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, key: K, mark: object = None, *, offline: bool = False) -> V:
        """The answer for `key`. With `mark`, one that was read under another mark does not count as fresh.

        `offline` says that reading is known to fail: then an answer that is not too old is given without trying.
        Raises OpenLoraError as `read` does, where nothing young enough is held.
        """
        held = self._held.get(key)
        if held is not None:
            age = self._clock() - held.read_at
            if (held.mark == mark and age < self._fresh_s) or (offline and age < self.stale_s):
                self._held.move_to_end(key)
                return held.value
        try:
            return await self._fetch(key, mark)
        except OpenLoraError:
            # Dropped meanwhile: then the answer of before is known to be wrong.
            held = self._held.get(key)
            if held is not None and self._clock() - held.read_at < self.stale_s:
                return held.value
            raise

    def drop(self, key: K) -> None:
        """Forget one answer, and what is being read for it."""
        self._held.pop(key, None)
        self._reading.pop(key, None)

    def drop_where(self, matches: Callable[[K], bool]) -> None:
        """Forget the answers whose key matches."""
        for key in [key for key in (*self._held, *self._reading) if matches(key)]:
            self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._reading.clear()

    async def _fetch(self, key: K, mark: object) -> V:
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(key, mark), name=f"chainview-read-{self._name}")
            self._reading[key] = task
            # Who waits may be cancelled; then nobody is left to look at the task's exception.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _load(self, key: K, mark: object) -> V:
        mine, read_at = asyncio.current_task(), self._clock()
        try:
            value = await self._read(key)
        finally:
            wanted = self._reading.get(key) is mine
            if wanted:
                del self._reading[key]
        if wanted:
            self._held[key] = _Held(value, read_at, mark)
            self._held.move_to_end(key)
            while len(self._held) > self._size:
                self._held.popitem(last=False)
        return value
