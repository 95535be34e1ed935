"""Gets starving adapters a slot: who must make room, and when waiting politely ends. Preempts nobody itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .queue import Lane, WaitingQueue
from .residency import Residency
from .sequence import Sequence, SequenceStatus
from .slots import SlotPool

Holders = Mapping[str, Collection[Sequence]]
"""Resident digest -> the sequences that hold a reference on it."""


class SlotDrainer:
    """While every slot is in use, adapters without one are served in three ways, each costlier than the last.

    1. A slot that only sequences hold which do not run (paused, or back from a pause) is taken from them.
    2. The request longest in line that waited `max_wait_s` gets a slot reserved: the adapter whose running sequences
       end soonest takes no new ones (drains), and its slot goes to that request's adapter and to no other. The drained
       adapter had its turn: whoever waits with it goes to the end of the line.
    3. `max_wait_s` later, what still runs on the draining adapter is preempted. A sequence that recomputes after an
       earlier preemption samples one token first, so that every turn brings it on.

    So an adapter that is k-th in line for a slot has one after at most (1 + ceil(k / m)) * max_wait_s (plus such
    recomputations), m being the adapters that drain at once: a quarter of the slots, at least one, fewer only where
    pins leave fewer to drain.
    An adapter that host memory has no room for is helped likewise, by the host memory of the one that drained.
    """

    def __init__(self, slots: SlotPool, queue: WaitingQueue, residency: Residency, max_wait_s: float) -> None:
        self.max_reservations = max(1, slots.num_slots // 4)
        self._slots = slots
        self._queue = queue
        self._residency = residency
        self._max_wait_s = max_wait_s
        self._since: dict[str, float] = {}
        """Reserved digest -> when its victim began to drain."""

    def update(self, now: float, holders: Holders) -> list[Sequence]:
        """Begin, end and enforce reservations; returns the sequences to preempt now."""
        leaving = self._enforce(now, holders) if self._since else []
        starved = self._starved_lanes()
        if starved and not leaving:
            leaving = self._idle_holders(holders)
            if not leaving:
                self._reserve(now, holders, starved)
        return leaving

    def _starved_lanes(self) -> list[Lane]:
        lanes = []
        if self._queue.count(Lane.ABSENT) and not self._slots.has_room:
            lanes.append(Lane.ABSENT)
        if self._queue.count(Lane.NO_HOST_ROOM):
            lanes.append(Lane.NO_HOST_ROOM)
        return lanes

    def _enforce(self, now: float, holders: Holders) -> list[Sequence]:
        leaving: list[Sequence] = []
        victims = dict(self._slots.reservations)
        self._since = {digest: since for digest, since in self._since.items() if digest in victims}
        for digest, victim in victims.items():
            if not self._queue.has_adapter(digest):
                self._slots.cancel_reservation(digest)
            elif self._slots.num_refs(victim):
                overdue = now - self._since[digest] >= self._max_wait_s
                leaving += [seq for seq in holders[victim] if not _runs(seq) or (overdue and not seq.recomputes)]
            elif not self._residency.is_hosted(digest):
                self._residency.make_way(digest, victim, now)
        return leaving

    def _idle_holders(self, holders: Holders) -> list[Sequence]:
        """The holders of one slot that nothing runs on."""
        for digest, its in holders.items():
            if not self._slots.is_pinned(digest) and not any(map(_runs, its)):
                return list(its)
        return []

    def _reserve(self, now: float, holders: Holders, lanes: list[Lane]) -> None:
        while len(self._slots.reservations) < self.max_reservations:
            oldest = self._queue.oldest(lanes)
            if oldest is None or now - oldest.waiting_since < self._max_wait_s:
                return
            victim = self._shortest(holders)
            if victim is None:
                return
            assert oldest.adapter is not None, "the base needs no slot"
            self._since[oldest.adapter] = now
            self._slots.reserve(oldest.adapter, victim)
            self._queue.to_end_of_line(victim, now)

    def _shortest(self, holders: Holders) -> str | None:
        """The adapter that would be done first if it took nobody new."""
        candidates = [
            (max(map(_num_remaining, its)), digest)
            for digest, its in holders.items()
            if not self._slots.is_draining(digest) and not self._slots.is_pinned(digest)
        ]
        return min(candidates)[1] if candidates else None


def _runs(seq: Sequence) -> bool:
    return seq.status is SequenceStatus.RUNNING


def _num_remaining(seq: Sequence) -> int:
    """Most tokens it may still compute."""
    return seq.max_computed_tokens - seq.num_computed_tokens
