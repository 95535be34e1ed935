"""The store's space: what is there, what is promised, what must stay, and what goes when something new needs room."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock

from ..protocol.errors import ErrorCode, OpenLoraError
from .eviction import Candidate, victims
from .index import Index
from .layout import Layout, allocated, parse_folder_name, storage_errors, sync
from .leftovers import Leftovers
from .trees import TreeCache

KEEP_FREE = 256 << 20
"""Bytes of the disk that the store leaves to the journal beside it."""
PARTIAL_LIFE_S = 7 * 86_400.0
"""A download that nobody worked on for so long goes."""
INCOMING_LIFE_S = 3_600.0
MAX_STEP = 16 << 20
"""Bytes that a download is given at once; a 64th of the store where that is less."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Bytes on disk: of complete artifacts, of downloads and imports under way; and what is allowed for both."""

    complete: int
    partial: int
    cache_size: int
    artifacts: int


@dataclass(frozen=True)
class Collected:
    """What a garbage collection removed: bytes freed, artifacts evicted, downloads given up, folders of no artifact."""

    freed: int
    artifacts: int
    partials: int
    broken: int


@dataclass
class _Download:
    """Bytes on disk: what a download comes to when it is whole, and the room that was made for it so far."""

    promised: int
    room: int


class Space:
    """Who holds on to what, and room for more. Thread-safe. `evicts`: whether this process may delete.

    `lock` is for making room, in worker threads, and may be held while the disk works; holding on takes another, which
    is held for a rename at most, so that an event loop may wait for it.

    A manifest is anyone's promise. What it promises must fit, but nothing is evicted before its chunks are proven.
    """

    def __init__(
        self,
        layout: Layout,
        index: Index,
        trees: TreeCache,
        *,
        cache_size: int,
        keep_free: int = KEEP_FREE,
        evicts: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lock = RLock()
        self._layout = layout
        self._index = index
        self._trees = trees
        self._leftovers = Leftovers(layout, clock)
        self._cache_size = cache_size
        self._keep_free = keep_free
        self._evicts = evicts
        self._clock = clock
        self._holding = Lock()
        self._held: Counter[bytes] = Counter()
        self._promised: dict[object, int] = {}
        self._fetched: dict[bytes, _Download] = {}
        self._step = min(MAX_STEP, cache_size // 64)

    def usage(self) -> Usage:
        """How full the store is."""
        entries, idle = self._index.entries(), self._leftovers.idle(self._fetched)
        partial = sum(candidate.footprint for candidate in idle) + self._under_way()
        complete = sum(entry.footprint for entry in entries)
        return Usage(complete, partial, self._cache_size, len(entries))

    # Holds and pins.

    def take(self, artifact: bytes) -> bool:
        """One more holds on to an artifact; False when it is not there."""
        with self._holding:
            if self._index.get(artifact) is None:
                return False
            self._held[artifact] += 1
            return True

    def release(self, artifact: bytes) -> None:
        """One holds on no longer."""
        with self._holding:
            self._held[artifact] -= 1
            if self._held[artifact] <= 0:
                del self._held[artifact]

    def take_out(self, artifact: bytes, move: Callable[[], object]) -> bool:
        """Have an artifact moved out of its place, unless somebody holds on to it: False then."""
        with self._holding:
            if artifact in self._held:
                return False
            move()
            self._index.drop(artifact)  # after the move: memory looks on the disk for what it does not know
            self._trees.forget(artifact)
            return True

    def pin(self, artifact: bytes) -> None:
        """Make a pin."""
        with storage_errors():
            self._layout.pin(artifact).touch(mode=0o600)
            sync(self._layout.pins)

    def unpin(self, artifact: bytes) -> None:
        """Take a pin away."""
        with storage_errors():
            self._layout.pin(artifact).unlink(missing_ok=True)

    def pinned(self) -> frozenset[bytes]:
        """All pins, read from the disk: other processes may pin too."""
        with storage_errors():
            names = (parse_folder_name(entry.name) for entry in os.scandir(self._layout.pins))
            return frozenset(name for name in names if name is not None)

    # Room.

    @contextmanager
    def room_for(self, needed: int) -> Iterator[None]:
        """Room of so many bytes that nobody else is promised meanwhile. Raises STORAGE_FULL."""
        token = object()
        with self.lock:
            self._promised[token] = needed
            try:
                self._must_fit(disk=needed)
                self._make(disk=needed)
            except BaseException:
                del self._promised[token]
                raise
        try:
            yield
        finally:
            with self.lock:
                del self._promised[token]

    def begin(self, artifact: bytes, needed: int) -> None:
        """Promise room to a download; nothing goes for it yet. Raises STORAGE_FULL, BUSY when it is under way."""
        with self.lock:
            if artifact in self._fetched:
                raise OpenLoraError(ErrorCode.BUSY, "the artifact is being fetched already", retry_after_ms=1000)
            there = min(needed, allocated(self._layout.partial(artifact)))
            self._fetched[artifact] = _Download(needed, there)
            try:
                self._must_fit(disk=needed - there)
            except BaseException:
                del self._fetched[artifact]
                raise

    def grow(self, artifact: bytes, left: int) -> None:
        """Make room for what of a download is proven: all but `left` bytes. Raises STORAGE_FULL.

        Room grows in steps: to look for what may go costs more than a chunk.
        """
        download = self._fetched.get(artifact)
        if download is None or download.promised - left <= download.room:
            return
        with self.lock:
            before, wanted = download.room, download.promised - max(0, left)
            if wanted <= before:
                return
            download.room = min(download.promised, wanted + self._step)
            try:
                self._make(disk=download.room - before)
            except BaseException:
                download.room = before
                raise

    def end(self, artifact: bytes) -> None:
        """The download is over, one way or the other."""
        with self.lock:
            self._fetched.pop(artifact, None)

    def delete(self, artifact: bytes) -> bool:
        """Delete a complete artifact; False when somebody holds on to it."""
        moved: list[Path | None] = []
        if not self.take_out(artifact, lambda: moved.append(self._layout.banish(self._layout.artifact(artifact)))):
            return False
        if moved[0] is not None:
            self._layout.discard(moved[0])
        return True

    def collect(self) -> Collected:
        """Remove what nothing needs: remains of crashes, forgotten downloads, what exceeds the space."""
        with self.lock, storage_errors():
            freed = self._leftovers.sweep(self._layout.trash, 0.0)
            freed += self._leftovers.sweep(self._layout.incoming, INCOMING_LIFE_S)
            self._index.refresh()
            broken = tuple(self._index.broken)
            for artifact in broken:
                freed += allocated(self._layout.artifact(artifact))
                self.delete(artifact)
                self._index.broken.discard(artifact)
            idle = [c for c in self._leftovers.idle(self._fetched) if self._clock() - c.last_used > PARTIAL_LIFE_S]
            gone = [candidate for candidate in idle if self._leftovers.give_up(candidate.artifact)]
            freed += sum(candidate.footprint for candidate in gone)
            before = {entry.artifact: entry.footprint for entry in self._index.entries()}
            with suppress(OpenLoraError):  # what is pinned or held may exceed the space: nothing more can go
                self._make(disk=0)
            evicted = set(before) - {entry.artifact for entry in self._index.entries()}
        return Collected(freed + sum(before[artifact] for artifact in evicted), len(evicted), len(gone), len(broken))

    def _make(self, *, disk: int) -> None:
        """Evict until what has room fits the store's space and `disk` more bytes the disk. Raises STORAGE_FULL.

        It ends: each time that it begins again, one artifact more is held.
        """
        excess, candidates = self._excess(0, disk)
        chosen = self._victims(candidates, excess)
        with storage_errors():
            for victim in chosen:
                if victim.partial:
                    self._leftovers.give_up(victim.artifact)
                elif self.delete(victim.artifact):
                    logger.info("evicted %s", victim.artifact.hex())
                else:  # taken since: somebody else has to go
                    self._make(disk=disk)
                    return

    def _must_fit(self, *, disk: int) -> None:
        """Refuse what could not fit beside all that is promised, with `disk` more bytes. Raises STORAGE_FULL."""
        excess, candidates = self._excess(sum(d.promised - d.room for d in list(self._fetched.values())), disk)
        self._victims(candidates, excess)

    def _excess(self, more: int, disk: int) -> tuple[int, list[Candidate]]:
        """Bytes that have to go for `more` in the store and `disk` on the disk, and what may go."""
        with storage_errors():
            status = os.statvfs(self._layout.root)
            self._index.refresh()
            entries, idle = self._index.entries(), self._leftovers.idle(self._fetched)
        used = sum(e.footprint for e in entries) + sum(c.footprint for c in idle) + self._under_way()
        over = used + more - self._cache_size if self._evicts else 0  # a guest may exceed it: the writer evicts
        excess = max(over, disk + self._keep_free - status.f_bavail * status.f_frsize)
        if excess <= 0:
            return 0, []
        pinned = self.pinned()
        free = [
            Candidate(entry.artifact, entry.footprint, self._index.last_used(entry.artifact))
            for entry in entries
            if entry.artifact not in self._held and entry.artifact not in pinned
        ]
        return excess, [*idle, *free]

    def _victims(self, candidates: list[Candidate], excess: int) -> tuple[Candidate, ...]:
        chosen = victims(candidates, excess) if self._evicts or excess <= 0 else None
        if chosen is None:
            raise OpenLoraError(
                ErrorCode.STORAGE_FULL,
                "the artifact does not fit: raise artifacts.cache_size, free disk space or unpin others",
            )
        return chosen

    def _under_way(self) -> int:
        return sum(d.room for d in list(self._fetched.values())) + sum(list(self._promised.values()))
