"""Which adapter sits in which device slot: reference counts, LRU, pins, reservations. Knows digests, never weights.

A digest is, from the scheduler's view, in one of four places: absent (nobody asked for it), loading into host memory,
on the host, or in a slot. `HostTier` owns the first three, `SlotPool` the last; `SlotLoader` does what a slot's change
of tenancy costs. All three are called from the step's thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

from ..errors import Code, EngineError


class HostTier(Protocol):
    """Adapters in host memory, bounded in bytes; loads from disk happen off the step's thread. No call blocks.

    The scheduler asks for a digest when the first unpaused sequence that needs it arrives and releases it when the last
    one is gone: at most one `request` is open for a digest at any time.
    """

    def is_ready(self, digest: str) -> bool:
        """Whether the whole adapter (or mix) is in host memory now. O(1)."""
        ...

    def request(self, digest: str) -> bool:
        """Start loading `digest` unless it is there, and keep it in host memory until `release`.

        True: accepted. If `is_ready` is not true at once, exactly one of `Scheduler.adapter_ready(digest)` and
        `Scheduler.adapter_failed(digest, error)` follows, on the step's thread and never from inside this call; a
        failed load is forgotten and must not be released.
        False: no room, since requested adapters hold all of it. Nothing is remembered; the scheduler asks again, in the
        order of fairness, while others are released.
        """
        ...

    def release(self, digest: str) -> None:
        """No live sequence needs `digest` any more: it may be evicted, or its load called off if still under way.

        What becomes of that load is then not told any more.
        """
        ...


class SlotLoader(Protocol):
    """Makes a slot serve an adapter: on the CPU by setting addresses, on CUDA by one asynchronous copy."""

    def load(self, slot: int, digest: str) -> None:
        """Let `slot` serve `digest`, which the host tier holds ready. Must not block.

        The host copy stays while the slot points into it, so the loader keeps its own hold until `unload`. A copy into
        the same slot may still be under way for an adapter unloaded before: the loader orders the two.
        Raises EngineError when it cannot be done; the slot is then empty.
        """
        ...

    def is_loaded(self, slot: int, digest: str) -> bool:
        """Whether a step launched now may read `slot` (always true on the CPU after `load`). O(1)."""
        ...

    def unload(self, slot: int, digest: str) -> None:
        """`slot` no longer serves `digest`; no sequence refers to it. Always called before the slot's next `load`."""
        ...


class SlotPool:
    """Slots 0..num_slots-1, each empty or serving one digest, with one reference per sequence that runs on it.

    An unreferenced, unpinned digest stays until its slot is needed, and the longest unreferenced one goes first. A
    *reservation* pairs a digest that waits with a victim that runs: the victim takes no new references, and its slot,
    once the last reference is gone, is the waiting digest's alone.

    `on_change(digest)` is called whenever a digest entered or left a slot, or its reservation began or ended.
    """

    def __init__(self, num_slots: int, loader: SlotLoader) -> None:
        self.num_slots = num_slots
        self.on_change: Callable[[str], None] = lambda _digest: None
        self.num_loads = 0
        self.num_evictions = 0
        self._loader = loader
        self._slots: dict[str, int] = {}
        self._refs: dict[str, int] = {}
        self._free = list(range(num_slots - 1, -1, -1))
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Resident, unreferenced, unpinned, not promised to a reservation; least recently used first."""
        self._copying: set[str] = set()
        """Resident, but the copy was still under way when last asked."""
        self._pinned: set[str] = set()
        self._victims: dict[str, str] = {}
        """Waiting digest -> the digest whose slot it will get."""
        self._draining: dict[str, str] = {}
        """The same pairs the other way round."""

    def __contains__(self, digest: str) -> bool:
        """Whether a slot serves `digest` (its copy may still be under way)."""
        return digest in self._slots

    def __iter__(self) -> Iterator[str]:
        """The resident digests."""
        return iter(self._slots)

    def __len__(self) -> int:
        """How many slots serve an adapter."""
        return len(self._slots)

    @property
    def has_room(self) -> bool:
        """Whether a digest that has no slot and no reservation could get one now."""
        return bool(self._free or self._idle)

    @property
    def idle(self) -> list[str]:
        """Resident digests that may be evicted, least recently used first."""
        return list(self._idle)

    @property
    def reservations(self) -> list[tuple[str, str]]:
        """Pairs of a waiting digest and the one whose slot it will get, oldest first."""
        return list(self._victims.items())

    def slot_of(self, digest: str) -> int:
        """The slot that serves a resident digest."""
        return self._slots[digest]

    def is_loaded(self, digest: str) -> bool:
        """Whether a step launched now may use the resident `digest`."""
        if digest in self._copying and self._loader.is_loaded(self._slots[digest], digest):
            self._copying.discard(digest)
        return digest not in self._copying

    def num_refs(self, digest: str) -> int:
        """References held on `digest`."""
        return self._refs.get(digest, 0)

    def is_draining(self, digest: str) -> bool:
        """Whether `digest` takes no new references, for another's sake."""
        return digest in self._draining

    def is_reserved(self, digest: str) -> bool:
        """Whether a victim drains for `digest`."""
        return digest in self._victims

    def is_pinned(self, digest: str) -> bool:
        """Whether `digest`, once in a slot, stays there."""
        return digest in self._pinned

    def can_acquire(self, digest: str) -> bool:
        """Whether `acquire` would return a slot."""
        if digest in self._slots:
            return digest not in self._draining
        return self.has_room or self._victim_is_free(digest)

    def acquire(self, digest: str) -> int | None:
        """Take one reference; gives the slot, or None when none can be had now. A digest new to the pool is loaded.

        The slot may be read once `is_loaded`. Raises the loader's EngineError, with no reference taken.
        """
        if not self.can_acquire(digest):
            return None
        if digest not in self._slots:
            self._place(digest)
        self._refs[digest] = self._refs.get(digest, 0) + 1
        self._idle.pop(digest, None)
        return self._slots[digest]

    def release(self, digest: str) -> None:
        """Give one reference back."""
        self._refs[digest] -= 1
        if not self._refs[digest]:
            del self._refs[digest]
            self._rest(digest)

    def pin(self, digest: str) -> None:
        """Keep `digest` in its slot once it has one. Raises BAD_REQUEST where no slot would be left for the others.

        On the CPU it stays in host memory too; that enough of that is left is the caller's to see to.
        """
        if digest not in self._pinned and len(self._pinned) >= self.num_slots - 1:
            raise EngineError(
                Code.BAD_REQUEST,
                f"at most {max(0, self.num_slots - 1)} adapters can be pinned with {self.num_slots} slots; "
                "unpin one, or raise --max-loras",
            )
        self._pinned.add(digest)
        self._idle.pop(digest, None)
        if digest in self._draining:
            self.cancel_reservation(self._draining[digest])

    def unpin(self, digest: str) -> None:
        """Let `digest` be evicted again."""
        self._pinned.discard(digest)
        self._rest(digest)

    def reserve(self, digest: str, victim: str) -> None:
        """Promise the slot of `victim`, which runs, to `digest`, which waits; `victim` takes no more references."""
        assert digest not in self._slots, f"{digest} has a slot"
        assert digest not in self._victims, f"{digest} has a reservation"
        assert victim in self._refs, f"{victim} does not run"
        assert victim not in self._draining, f"{victim} drains already"
        assert victim not in self._pinned, f"{victim} is pinned"
        self._victims[digest] = victim
        self._draining[victim] = digest
        self.on_change(victim)
        self.on_change(digest)

    def cancel_reservation(self, digest: str) -> None:
        """Take a promise back: its victim serves new sequences again. Unknown digests are ignored."""
        victim = self._victims.pop(digest, None)
        if victim is None:
            return
        del self._draining[victim]
        self._rest(victim)
        self.on_change(victim)
        self.on_change(digest)

    def evict(self, digest: str) -> None:
        """Empty the slot of `digest` and unpin it. Raises ADAPTER_IN_USE while sequences refer to it."""
        if self._refs.get(digest):
            raise EngineError(
                Code.ADAPTER_IN_USE,
                f"{digest} serves {self._refs[digest]} running sequences; unload it when they ended",
            )
        self._pinned.discard(digest)
        if digest in self._draining:
            self.cancel_reservation(self._draining[digest])
        if digest in self._slots:
            self._free.append(self._unload(digest))

    def check_integrity(self) -> None:
        """Assert that every slot is accounted for exactly once; for tests and for idle moments."""
        used = sorted([*self._slots.values(), *self._free])
        assert used == list(range(self.num_slots)), f"slots lost or doubled: {used}"
        assert set(self._refs) <= set(self._slots), "a reference to an adapter without a slot"
        assert all(count > 0 for count in self._refs.values()), "a reference count below one was kept"
        resting = set(self._slots) - set(self._refs) - self._pinned - set(self._draining)
        assert set(self._idle) == resting, "the evictable adapters are not the unreferenced ones"
        assert {victim: digest for digest, victim in self._victims.items()} == self._draining, "one-sided reservation"
        assert not set(self._victims) & set(self._slots), "a resident adapter still has a reservation"
        assert set(self._draining) <= set(self._slots), "a draining adapter has no slot"
        assert not set(self._draining) & self._pinned, "a pinned adapter drains"
        assert self._copying <= set(self._slots), "a copy into no slot"

    def _victim_is_free(self, digest: str) -> bool:
        victim = self._victims.get(digest)
        return victim is not None and victim not in self._refs

    def _place(self, digest: str) -> None:
        """Find a slot for an absent digest (one can be had) and load it."""
        if self._victim_is_free(digest):
            victim = self._victims[digest]
            self.cancel_reservation(digest)
            slot = self._unload(victim)
        else:
            self.cancel_reservation(digest)
            slot = self._free.pop() if self._free else self._unload(next(iter(self._idle)))
        try:
            self._loader.load(slot, digest)
        except EngineError:
            self._free.append(slot)
            raise
        self.num_loads += 1
        self._slots[digest] = slot
        self._copying.add(digest)
        self.on_change(digest)

    def _unload(self, digest: str) -> int:
        slot = self._slots.pop(digest)
        self._idle.pop(digest, None)
        self._copying.discard(digest)
        self._loader.unload(slot, digest)
        self.num_evictions += 1
        self.on_change(digest)
        return slot

    def _rest(self, digest: str) -> None:
        """Put `digest` among the evictable ones if that is what it is."""
        kept = digest in self._refs or digest in self._pinned or digest in self._draining
        if digest in self._slots and not kept:
            self._idle[digest] = None
            self._idle.move_to_end(digest)
