"""Adapters in host memory: an LRU bounded in bytes. What is held is never evicted, and the bound is never passed.

Room is reserved before it is allocated and counts from then on. Thread-safe; nothing here reads, writes or waits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

from .blob import Blob


@dataclass(slots=True)
class _Entry:
    blob: Blob
    nbytes: int
    holds: int
    doomed: bool = False
    """Its adapter was unloaded: it goes with the last hold."""


@dataclass(frozen=True)
class CacheStats:
    """Running totals, and what is held now; evictions by cause (`room`, `unloaded`)."""

    capacity: int
    used_bytes: int
    num_adapters: int
    num_held: int
    evictions: Mapping[str, int] = field(default_factory=dict)


class HostCache:
    """Blobs by digest, at most `capacity` bytes of them and of room promised to loads under way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = Lock()
        self._entries: dict[str, _Entry] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Digests that nobody holds, least recently used first."""
        self._used = 0
        self._reserved = 0
        self._evicted: list[Blob] = []
        self._evictions: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        """Whether the adapter is in host memory, whole. O(1)."""
        return digest in self._entries

    def __len__(self) -> int:
        """Adapters in host memory."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes in use or promised."""
        return self._used + self._reserved

    def reserve(self, nbytes: int) -> bool:
        """Promise room for loads, evicting what nobody holds, least recently used first; False if that is too little.

        Nothing is evicted in vain.
        """
        with self._lock:
            missing = self.used_bytes + nbytes - self.capacity
            victims = []
            for digest in self._idle:
                if missing <= 0:
                    break
                victims.append(digest)
                missing -= self._entries[digest].nbytes
            if missing > 0:
                return False
            self._evicted += [self._drop(digest, "room") for digest in victims]
            self._reserved += nbytes
            return True

    def cancel(self, nbytes: int) -> None:
        """Give promised room back."""
        with self._lock:
            self._reserved -= nbytes
            assert self._reserved >= 0, "room given back twice"

    def insert(self, digest: str, blob: Blob, nbytes: int, holds: int) -> None:
        """Put a loaded blob into the room that was promised to it."""
        with self._lock:
            assert digest not in self._entries, f"{digest} was loaded twice"
            assert self._reserved >= nbytes, f"no room was promised to {digest}"
            self._reserved -= nbytes
            self._used += nbytes
            self._entries[digest] = _Entry(blob, nbytes, holds)
            if not holds:
                self._idle[digest] = None

    def hold(self, digest: str) -> Blob | None:
        """The blob, kept until `release`; None if it is not here."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            entry.holds += 1
            self._idle.pop(digest, None)
            return entry.blob

    def release(self, digest: str) -> None:
        """Give one hold back; the adapter is then the most recently used."""
        with self._lock:
            entry = self._entries[digest]
            assert entry.holds > 0, f"{digest} is not held"
            entry.holds -= 1
            if not entry.holds:
                self._idle[digest] = None
                if entry.doomed:
                    self._drop(digest, "unloaded")

    def blob(self, digest: str) -> Blob:
        """The blob of an adapter that the caller holds."""
        return self._entries[digest].blob

    def num_holds(self, digest: str) -> int:
        """Holds on an adapter; 0 also where it is absent."""
        with self._lock:
            entry = self._entries.get(digest)
            return 0 if entry is None else entry.holds

    def discard(self, digest: str) -> None:
        """Let an adapter go, at once or with its last hold."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return
            if entry.holds:
                entry.doomed = True
            else:
                self._drop(digest, "unloaded")

    def take_evicted(self) -> list[Blob]:
        """What made room since, for the caller's thread to give back to the system: the loader's, not the step's.

        Their room counts as free already: take (and drop) them before allocating what was reserved.
        """
        with self._lock:
            evicted, self._evicted = self._evicted, []
            return evicted

    def stats(self) -> CacheStats:
        """Totals and levels at this moment."""
        with self._lock:
            return CacheStats(
                self.capacity,
                self.used_bytes,
                len(self._entries),
                len(self._entries) - len(self._idle),
                dict(self._evictions),
            )

    def check_integrity(self) -> None:
        """Assert that bytes, holds and order agree; for tests."""
        with self._lock:
            assert self._used == sum(entry.nbytes for entry in self._entries.values()), "bytes miscounted"
            assert 0 <= self.used_bytes <= self.capacity, "the bound was passed"
            idle = {digest for digest, entry in self._entries.items() if not entry.holds}
            assert set(self._idle) == idle, "the evictable adapters are not the unheld ones"

    def _drop(self, digest: str, cause: str) -> Blob:
        entry = self._entries.pop(digest)
        del self._idle[digest]
        self._used -= entry.nbytes
        self._evictions[cause] += 1
        return entry.blob
