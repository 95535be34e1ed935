"""Where every live sequence is and what it holds: each move between queue, batch and pause in one place. No policy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .blocks import BlockManager
from .fairness import FairShare
from .queue import Lane, WaitingQueue
from .residency import Residency
from .sequence import Sequence, SequenceStatus
from .sharing import SharedPrefills
from .slots import HostTier, SlotPool


@dataclass(frozen=True)
class SchedulerStats:
    """Counts for metrics, at one moment."""

    num_running: int
    num_waiting: int
    """Queued, not paused; those whose adapter is loading included."""
    num_paused: int
    kv_cache_usage: float
    """Share of the blocks that sequences hold, 0 to 1."""
    prefix_cache_queries: int
    """Tokens, since the start; likewise the hits."""
    prefix_cache_hits: int
    num_preemptions: int
    slots_used: int
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]


class Roster:
    """A live sequence is in exactly one place: the queue, put off behind a leader, the batch, or paused.

    One in the batch holds blocks for all its tokens, and a reference on its adapter's slot. It keeps both when it
    leaves the batch without ending (it *parks*), until `preempt`.
    """

    def __init__(self, blocks: BlockManager, slots: SlotPool, host: HostTier, share: FairShare) -> None:
        self.blocks = blocks
        self.slots = slots
        self.share = share
        self.queue = WaitingQueue(share)
        self.residency = Residency(host, slots, self.queue)
        self.sharing = SharedPrefills()
        self.running: dict[Sequence, None] = {}
        """The batch, in order of admission."""
        self.holders: dict[str, dict[Sequence, None]] = {}
        """Digest -> the sequences that hold a reference on its slot."""
        self.now = 0.0
        """The time last told to the scheduler, in seconds."""
        self._live: dict[str, Sequence] = {}
        self._paused: dict[Sequence, None] = {}
        self._parked: dict[Sequence, None] = {}
        """Sequences that hold blocks and do not run, longest parked first."""
        self._leaving: list[Sequence] = []
        """Ended while the step in flight reads what they hold."""
        self._queued: dict[str, int] = {}
        """Tenant -> live sequences that do not run."""
        self._num_preemptions = 0

    def __len__(self) -> int:
        """Live sequences."""
        return len(self._live)

    def __iter__(self) -> Iterator[Sequence]:
        """The live sequences, in order of arrival."""
        return iter(self._live.values())

    def get(self, seq_id: str) -> Sequence | None:
        """A live sequence by its name."""
        return self._live.get(seq_id)

    @property
    def num_queued(self) -> int:
        """Live sequences that do not run."""
        return len(self._live) - len(self.running)

    @property
    def num_tenants_queued(self) -> int:
        """Tenants with such sequences."""
        return len(self._queued)

    def num_queued_of(self, tenant: str) -> int:
        """One tenant's sequences that do not run."""
        return self._queued.get(tenant, 0)

    @property
    def parked(self) -> Collection[Sequence]:
        """Sequences that hold blocks and do not run."""
        return self._parked.keys()

    def first_parked(self, but: Sequence | None = None) -> Sequence | None:
        """The parked sequence that is missed least: paused rather than resumed, longest parked first."""
        parked = [seq for seq in self._parked if seq is not but]
        return next((seq for seq in parked if seq in self._paused), parked[0] if parked else None)

    @property
    def stats(self) -> SchedulerStats:
        """Counts for metrics. O(adapters)."""
        blocks = self.blocks
        return SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self._live) - len(self.running) - len(self._paused),
            num_paused=len(self._paused),
            kv_cache_usage=1 - blocks.num_free_blocks / blocks.num_blocks,
            prefix_cache_queries=blocks.num_queried_tokens,
            prefix_cache_hits=blocks.num_hit_tokens,
            num_preemptions=self._num_preemptions,
            slots_used=len(self.slots),
            running_adapters=tuple(self.holders),
            waiting_adapters=tuple(self.queue.adapters(Lane)),
        )

    def enter(self, seq: Sequence) -> None:
        """A new sequence, at the end of the line."""
        assert seq.seq_id not in self._live, f"two live sequences are named {seq.seq_id}"
        seq.arrival_time = self.now
        self.queue.take_place(seq, self.now)
        seq.adapter_tier = self.residency.tier(seq.adapter)
        self._live[seq.seq_id] = seq
        self._count_queued(seq, 1)
        self.share.enter(seq)
        self.residency.need(seq, self.now)
        self.enqueue(seq)

    def enqueue(self, seq: Sequence) -> None:
        """Into the line of its tenant and adapter, at its place; at the end if its adapter gives up its slot."""
        if seq.adapter is not None and self.slots.is_draining(seq.adapter):
            self.queue.take_place(seq, self.now)
        self.queue.push(seq, self.residency.lane(seq.adapter))
        seq.status = self.residency.waiting_status(seq)

    def put_off(self, seq: Sequence, name: bytes) -> None:
        """Out of the queue until a leader has computed the block `name`."""
        self.queue.discard(seq)
        self.sharing.follow(seq, name)

    def take_slot(self, seq: Sequence) -> None:
        """Give a queued sequence its reference on a slot, which there must be. Raises the slot loader's EngineError."""
        if seq.adapter is not None and seq.slot is None:
            seq.slot = self.slots.acquire(seq.adapter)
            assert seq.slot is not None, f"{seq.adapter} was ranked without a slot to be had"
            self.holders.setdefault(seq.adapter, {})[seq] = None

    def seat(self, seq: Sequence, matched: list[int]) -> None:
        """From the queue into the batch; it has its slot, and there are blocks enough. `matched` are those it starts
        with, unless it comes back with its own."""
        self.queue.discard(seq)
        self._count_queued(seq, -1)
        blocks = self.blocks
        if seq.holds_memory:
            del self._parked[seq]
            if blocks.needs_block(seq):
                blocks.append(seq)
        else:
            blocks.allocate(seq, matched)
            if seq.first_scheduled_time is None:
                seq.num_cached_tokens = seq.num_computed_tokens
                seq.adapter_wait_s = self.residency.adapter_wait_s(seq)
            self.share.charge_prompt(seq)
        self.running[seq] = None
        seq.status = SequenceStatus.RUNNING
        self.sharing.lead(seq, blocks.names_to_compute(seq))

    def pause(self, seq: Sequence) -> None:
        """Out of batch or queue; it keeps what it holds."""
        if seq in self.running:
            self._stand_up(seq)
        else:
            self._unqueue(seq)
        seq.status = SequenceStatus.PAUSED
        self._paused[seq] = None
        if not seq.holds_memory:
            self.residency.drop(seq)

    def resume(self, seq: Sequence) -> None:
        """From pause into the queue, at its old place."""
        del self._paused[seq]
        self.residency.need(seq, self.now)
        self.enqueue(seq)

    def preempt(self, seq: Sequence) -> None:
        """Take blocks and slot from a sequence; unless paused, it waits to recompute."""
        if seq in self.running:
            self._stand_up(seq)
        self._unqueue(seq)
        self._let_go(seq)
        seq.recomputes = True
        seq.num_preemptions += 1
        self._num_preemptions += 1
        if seq in self._paused:
            self.residency.drop(seq)
        else:
            self.enqueue(seq)

    def remove(self, seq: Sequence, *, in_flight: bool = False) -> None:
        """Out of the scheduler, from wherever it is. What the step in flight reads is kept until `end_step`."""
        if seq in self.running:
            self._stand_up(seq)
        self._unqueue(seq)
        self._paused.pop(seq, None)
        self._parked.pop(seq, None)
        if in_flight:
            self._leaving.append(seq)
        else:
            self._let_go(seq)
        self.residency.drop(seq)
        self._count_queued(seq, -1)
        self.share.exit(seq)
        del self._live[seq.seq_id]
        seq.status = SequenceStatus.FINISHED

    def end_step(self) -> None:
        """No step is in flight any more."""
        for seq in self._leaving:
            self._let_go(seq)
        self._leaving.clear()

    def check_integrity(self) -> None:
        """Assert that every sequence is in exactly one place and every block and slot is accounted for. O(all)."""
        live = list(self)
        self.blocks.check_integrity([*live, *self._leaving])
        self.slots.check_integrity()
        self.queue.check_integrity()
        self.residency.check_integrity(live)
        self.sharing.check_integrity(self.running)
        for seq in live:
            running, paused = seq in self.running, seq in self._paused
            assert running + paused + (seq in self.queue) + (seq in self.sharing) == 1, f"{seq} is not in one place"
            assert running == (seq.status is SequenceStatus.RUNNING), f"{seq} runs, or does it?"
            assert paused == (seq.status is SequenceStatus.PAUSED), f"{seq} is paused, or is it?"
            assert (seq in self._parked) == (seq.holds_memory and not running), f"{seq} parks, or does it?"
            assert seq.holds_memory or not running, f"{seq} runs on nothing"
            assert (seq.slot is not None) == (seq.holds_memory and seq.adapter is not None), f"{seq} and its slot"
            if seq.slot is not None and seq.adapter is not None:
                assert self.slots.slot_of(seq.adapter) == seq.slot, f"{seq} has another slot"
                assert seq in self.holders[seq.adapter], f"{seq} holds a slot unseen"
        placed = len(self.queue) + len(self.sharing) + len(self.running) + len(self._paused)
        assert placed == len(live), "a sequence that is not live has a place"
        for digest in {*self.slots, *self.holders}:
            assert self.slots.num_refs(digest) == len(self.holders.get(digest, ())), f"{digest}: references differ"
        assert sum(self._queued.values()) == self.num_queued, "queued sequences miscounted"

    def _unqueue(self, seq: Sequence) -> None:
        self.queue.discard(seq)
        self.sharing.discard(seq)

    def _stand_up(self, seq: Sequence) -> None:
        """Leave the batch and park; whoever waited for what it would compute does so no longer."""
        del self.running[seq]
        self._parked[seq] = None
        self._count_queued(seq, 1)
        for follower in self.sharing.stop_leading(seq):
            self.enqueue(follower)

    def _let_go(self, seq: Sequence) -> None:
        """Give blocks and slot back."""
        self._parked.pop(seq, None)
        self.blocks.deallocate(seq)
        if seq.adapter is not None and seq.slot is not None:
            seq.slot = None
            holders = self.holders[seq.adapter]
            del holders[seq]
            if not holders:
                del self.holders[seq.adapter]
            self.slots.release(seq.adapter)

    def _count_queued(self, seq: Sequence, change: int) -> None:
        count = self._queued.get(seq.tenant, 0) + change
        if count:
            self._queued[seq.tenant] = count
        else:
            self._queued.pop(seq.tenant, None)
