"""Which lane each adapter's sequences wait in, and what the host tier is asked for. Knows no blocks and no budget."""

from __future__ import annotations

from dataclasses import dataclass

from .queue import Lane, WaitingQueue
from .sequence import Sequence, SequenceStatus
from .slots import HostTier, SlotPool


@dataclass(slots=True)
class _Hosted:
    """A digest that live sequences need."""

    needed: int = 0
    asked: bool = False
    """A request to the host tier is open."""
    ready_time: float | None = None


class Residency:
    """Follows adapters from disk to slot on behalf of the queue.

    A digest is requested from the host tier when the first sequence needs it and no slot serves it, and released when
    the last one is gone. Where the host tier has no room, those that wait are asked for in the order of fairness.
    """

    def __init__(self, host: HostTier, slots: SlotPool, queue: WaitingQueue) -> None:
        self._host = host
        self._slots = slots
        self._queue = queue
        self._hosted: dict[str, _Hosted] = {}
        self._urgent: dict[str, None] = {}
        """Digests that host memory was cleared for: nobody else is asked for before they have it."""
        slots.on_change = self._sort

    def lane(self, adapter: str | None) -> Lane:
        """What sequences of this adapter wait for."""
        if adapter is None:
            return Lane.RESIDENT
        if self._slots.is_draining(adapter) or self._slots.is_reserved(adapter):
            return Lane.HELD
        if adapter in self._slots:
            return Lane.RESIDENT
        hosted = self._hosted.get(adapter)
        if hosted is None or not hosted.asked:
            return Lane.NO_HOST_ROOM
        return Lane.LOADING if hosted.ready_time is None else Lane.ABSENT

    def tier(self, adapter: str | None) -> str:
        """Where the adapter is found right now: base, slot, host or disk."""
        if adapter is None:
            return "base"
        if adapter in self._slots:
            return "slot"
        return "host" if self._host.is_ready(adapter) else "disk"

    def need(self, seq: Sequence, now: float) -> None:
        """`seq` is live and not paused. Its adapter's load starts here."""
        if seq.adapter is None or seq.holds_host:
            return
        seq.holds_host = True
        hosted = self._hosted.setdefault(seq.adapter, _Hosted())
        hosted.needed += 1
        # Whoever waits for room in host memory comes before a newcomer.
        if not hosted.asked and seq.adapter not in self._slots and not self._queue.count(Lane.NO_HOST_ROOM):
            self._ask(seq.adapter, now)

    def drop(self, seq: Sequence) -> None:
        """`seq` ended, or is paused and holds no slot."""
        if seq.adapter is None or not seq.holds_host:
            return
        seq.holds_host = False
        hosted = self._hosted[seq.adapter]
        hosted.needed -= 1
        if not hosted.needed:
            del self._hosted[seq.adapter]
            if hosted.asked:
                self._host.release(seq.adapter)

    def ask_again(self, now: float) -> None:
        """Request what the host tier had no room for, fairest first, until it refuses."""
        for digest, _victim in self._slots.reservations:
            if not self._is_asked(digest):
                self._ask(digest, now)
        for digest in list(self._urgent):
            if self._is_asked(digest):
                del self._urgent[digest]
            elif not self._ask(digest, now):
                return
        while (seq := self._queue.fairest((Lane.NO_HOST_ROOM,))) is not None:
            assert seq.adapter is not None, "the base needs no host memory"
            if not self._ask(seq.adapter, now):
                return

    def make_way(self, digest: str, victim: str, now: float) -> None:
        """`victim` has drained for `digest`, which is not in host memory: give `digest` its share of that too."""
        self._slots.evict(victim)
        hosted = self._hosted.get(victim)
        if hosted is not None and hosted.asked:
            hosted.asked, hosted.ready_time = False, None
            self._host.release(victim)
            self._sort(victim)
        if not self._is_asked(digest):
            self._urgent[digest] = None
            self.ask_again(now)

    def is_hosted(self, digest: str) -> bool:
        """Whether a digest that live sequences need can be put into a slot."""
        hosted = self._hosted.get(digest)
        return hosted is not None and hosted.ready_time is not None

    def ready(self, digest: str, now: float) -> None:
        """The host tier finished loading `digest`."""
        hosted = self._hosted.get(digest)
        if hosted is not None and hosted.asked and hosted.ready_time is None and self._host.is_ready(digest):
            hosted.ready_time = now
            self._sort(digest)

    def failed(self, digest: str) -> list[Sequence]:
        """The host tier could not load `digest`: returns the sequences that waited for it, still queued."""
        hosted = self._hosted.get(digest)
        if hosted is None or not hosted.asked or hosted.ready_time is not None:
            return []
        hosted.asked = False
        return self._queue.of_adapter(digest)

    def adapter_wait_s(self, seq: Sequence) -> float:
        """How long `seq` waited for its adapter to be loaded."""
        hosted = self._hosted.get(seq.adapter) if seq.adapter is not None else None
        if hosted is None or hosted.ready_time is None:
            return 0.0
        return max(0.0, hosted.ready_time - seq.arrival_time)

    def waiting_status(self, seq: Sequence) -> SequenceStatus:
        """The status of a sequence that is queued."""
        if not self._is_loaded(seq.adapter):
            return SequenceStatus.WAITING_ADAPTER
        recomputes = seq.recomputes and not seq.holds_memory
        return SequenceStatus.PREEMPTED if recomputes else SequenceStatus.WAITING

    def check_integrity(self, live: list[Sequence]) -> None:
        """Assert that lanes and needs agree with the live sequences."""
        for seq in live:
            if seq in self._queue:
                assert seq.status is self.waiting_status(seq), f"{seq} waits for something else"
                assert seq.holds_host or seq.adapter is None, f"nobody asks for the adapter of {seq}"
        for digest in {*self._hosted, *(seq.adapter for seq in live if seq.adapter is not None)}:
            needed = sum(1 for seq in live if seq.adapter == digest and seq.holds_host)
            hosted = self._hosted.get(digest)
            assert needed == (0 if hosted is None else hosted.needed), f"{digest} is needed by {needed}"
            if hosted is not None and hosted.ready_time is not None:
                assert self._host.is_ready(digest), f"{digest} left host memory while needed"
            if self._queue.has_adapter(digest):
                assert self._queue.lane_of(digest) is self.lane(digest), f"{digest} is in the wrong lane"

    def _is_asked(self, digest: str) -> bool:
        """Whether there is nothing to ask: requested, or no longer needed."""
        hosted = self._hosted.get(digest)
        return hosted is None or hosted.asked

    def _ask(self, digest: str, now: float) -> bool:
        if not self._host.request(digest) and not (self._evict_unneeded() and self._host.request(digest)):
            return False
        hosted = self._hosted[digest]
        hosted.asked = True
        hosted.ready_time = now if self._host.is_ready(digest) else None
        self._sort(digest)
        return True

    def _evict_unneeded(self) -> bool:
        """Empty the slots that nobody needs: on the CPU they keep host memory in use."""
        unneeded = [digest for digest in self._slots.idle if digest not in self._hosted]
        for digest in unneeded:
            self._slots.evict(digest)
        return bool(unneeded)

    def _is_loaded(self, adapter: str | None) -> bool:
        """Whether the adapter is in a slot, or may be put into one."""
        return adapter is None or adapter in self._slots or self.is_hosted(adapter)

    def _sort(self, digest: str) -> None:
        """Move the digest's sequences into the lane it belongs to now."""
        first = self._queue.first_of(digest)
        if first is None:
            return
        self._queue.move(digest, self.lane(digest))
        if self._is_loaded(digest) == (first.status is SequenceStatus.WAITING_ADAPTER):
            for seq in self._queue.of_adapter(digest):
                seq.status = self.waiting_status(seq)
