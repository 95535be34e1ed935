"""Decides what the next step runs: continuous batching with chunked prefill under one token budget.

Pure policy: no torch, no clock (`now` is passed in, in seconds, and never goes back), no I/O. Same calls, same
decisions. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf

from ..errors import Code, EngineError
from .blocks import BlockManager
from .drainer import SlotDrainer
from .fairness import FairShare
from .limits import SchedulerConfig
from .queue import Lane
from .roster import Roster, SchedulerStats
from .schedule import Failure, Schedule, TokenBudget
from .sequence import Sequence, SequenceStatus
from .slots import HostTier, SlotPool


class Scheduler:
    """Sequences from arrival to end. The cycle of a step is `schedule`, run it, `advance` (or `abandon` if it failed).

    Between the two, sequences may be added, cancelled, finished, paused and resumed; all of it takes effect at once,
    except that a chunk already scheduled is run: what it reads (block table, computed tokens, slot) stays as it is, and
    the blocks and slot of a sequence that ended meanwhile are free when the step ends.

    Guarantees. Progress: while a sequence is neither paused nor waiting for its adapter to be loaded, `schedule` gives
    at least one chunk (or reports a copy under way). No starvation: one that could be admitted is, at the latest
    `aged_every` * (number longer in line + 1) admissions after it waited `max_wait_s`; adapters without a slot: see
    SlotDrainer. Preemption, chunking and caching change when tokens are computed, never which.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        slots: SlotPool,
        host: HostTier,
        share: FairShare | None = None,
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._slots = slots
        self._share = share or FairShare()
        self._roster = Roster(blocks, slots, host, self._share)
        self._queue = self._roster.queue
        self._residency = self._roster.residency
        self._drainer = SlotDrainer(slots, self._queue, self._residency, config.max_wait_s)
        self._in_flight: Schedule | None = None
        self._since_aged = 0
        """Admissions since one went to an aged request."""

    def __contains__(self, seq_id: str) -> bool:
        """Whether the sequence is live."""
        return self._roster.get(seq_id) is not None

    def __len__(self) -> int:
        """Live sequences."""
        return len(self._roster)

    @property
    def live(self) -> ListOf[Sequence]:
        """The live sequences in order of arrival (a copy)."""
        return list(self._roster)

    @property
    def stats(self) -> SchedulerStats:
        """Counts for metrics. O(adapters)."""
        return self._roster.stats

    def add(self, seq: Sequence, now: float, drain_rate: float = 0.0) -> None:
        """Queue one sequence; see `add_all`."""
        self.add_all((seq,), now, drain_rate)

    def add_all(self, choices: ListOf[Sequence], now: float, drain_rate: float = 0.0) -> None:
        """Queue the choices of one request, all or none; its adapter's load starts here.

        `drain_rate` is the measured number of sequences a second that leave the queue (0: not measured).
        Raises BUSY with `retry_after_s`, PROMPT_EMPTY, PROMPT_TOO_LONG (can never fit the KV blocks), UNSUPPORTED
        (an adapter where there are no slots).
        """
        for seq in choices:
            self._check_fits(seq)
        self._check_queue(choices, drain_rate)
        self._roster.now = now
        for seq in choices:
            self._roster.enter(seq)

    def cancel(self, seq_id: str) -> Sequence | None:
        """Drop a sequence wherever it is; its blocks and slot are free at once, or when the step that runs it ends.
        None if it is not live (any more)."""
        seq = self._roster.get(seq_id)
        if seq is not None:
            self._remove(seq)
        return seq

    def finish(self, seq_id: str) -> Sequence:
        """End a live sequence that needs no more tokens; its prefix stays cached."""
        seq = self._roster.get(seq_id)
        assert seq is not None, f"{seq_id} is not live"
        self._remove(seq)
        return seq

    def pause(self, seq_id: str) -> bool:
        """Stop scheduling a sequence until `resume`. It keeps blocks and slot while nobody needs them, and holds up
        nobody: it has no seat, and its memory and slot are the first to be taken. False if not live."""
        seq = self._roster.get(seq_id)
        if seq is not None and seq.status is not SequenceStatus.PAUSED:
            self._roster.pause(seq)
        return seq is not None

    def resume(self, seq_id: str, now: float) -> bool:
        """Let a paused sequence run again, from its old place in line. False if not live."""
        seq = self._roster.get(seq_id)
        if seq is not None and seq.status is SequenceStatus.PAUSED:
            self._roster.now = now
            self._roster.resume(seq)
        return seq is not None

    def adapter_ready(self, digest: str, now: float) -> None:
        """The host tier has loaded an adapter that it was asked for."""
        self._residency.ready(digest, now)

    def adapter_failed(self, digest: str) -> tuple[Sequence, ...]:
        """The host tier could not load an adapter: drops and returns the sequences that waited for it."""
        dropped = tuple(self._residency.failed(digest))
        for seq in dropped:
            self._roster.remove(seq)
        return dropped

    def uses(self, digest: str) -> bool:
        """Whether a live sequence runs on or waits for this adapter. O(live)."""
        return any(seq.adapter == digest for seq in self._roster)

    def schedule(self, now: float) -> Schedule:
        """The next step. What it allots stays allotted until `advance` or `abandon`."""
        assert self._in_flight is None, "the step before was neither advanced nor abandoned"
        self._roster.now = now
        preempted: list[Sequence] = []
        failed: list[Failure] = []
        self._serve_starving(now, preempted)
        self._grow(preempted)

        budget = TokenBudget(self._config.max_num_batched_tokens)
        prefills, num_copying = self._continue(budget)
        num_copying += self._admit(now, budget, preempted, failed)
        if prefills:
            budget.give(prefills[0], budget.left)

        schedule = Schedule(budget.chunks(), tuple(preempted), tuple(failed), num_copying)
        for chunk in schedule.chunks:
            if chunk.seq.first_scheduled_time is None:
                chunk.seq.first_scheduled_time = now
        self._in_flight = schedule
        return schedule

    def advance(self, schedule: Schedule, tokens: ListOf[int]) -> tuple[Sequence, ...]:
        """The step was run: `tokens` are those sampled, one for each chunk that samples, in order.

        Returns the sequences that got a token, in the same order; those cancelled meanwhile got none. The caller
        `finish`es what is done: a sequence with `max_tokens` tokens, or one of `max_tokens` 0 with its prompt computed,
        must not be left.
        """
        assert schedule is self._in_flight, "not the step in flight"
        assert len(tokens) == sum(chunk.samples for chunk in schedule.chunks), "one token a sampling chunk"
        self._end_step()
        sampled: list[Sequence] = []
        token = iter(tokens)
        for seq, num_tokens, samples in schedule.chunks:
            token_id = next(token) if samples else None
            if seq.status is SequenceStatus.FINISHED:
                continue
            filled = self._blocks.commit(seq, num_tokens)
            if filled:
                for follower in self._roster.sharing.computed(seq, seq.block_hashes[filled.start : filled.stop]):
                    self._roster.enqueue(follower)
            if token_id is not None:
                seq.token_ids.append(token_id)
                assert seq.num_output_tokens <= seq.max_tokens, f"{seq} was not finished"
                seq.recomputes = False
                self._share.charge_output(seq)
                sampled.append(seq)
        return tuple(sampled)

    def abandon(self, schedule: Schedule) -> None:
        """The step failed and nothing of it counts: no token was computed. The next `schedule` gives those chunks
        again, unless the caller drops or pauses their sequences before."""
        assert schedule is self._in_flight, "not the step in flight"
        self._end_step()

    def check_integrity(self) -> None:
        """Assert that every sequence is in exactly one place and every block and slot is accounted for. O(all)."""
        self._roster.check_integrity()
        assert len(self._roster.running) <= self._config.max_num_seqs, "more sequences than seats"

    def _remove(self, seq: Sequence) -> None:
        step = self._in_flight
        self._roster.remove(seq, in_flight=step is not None and any(chunk.seq is seq for chunk in step.chunks))

    def _end_step(self) -> None:
        self._in_flight = None
        self._roster.end_step()

    def _check_fits(self, seq: Sequence) -> None:
        if not seq.num_prompt_tokens:
            raise EngineError(Code.PROMPT_EMPTY, "the prompt has no tokens; send at least one", param="prompt")
        blocks = self._blocks
        if blocks.blocks_for(seq.max_computed_tokens) > blocks.num_blocks:
            room = blocks.num_blocks * blocks.block_size
            raise EngineError(
                Code.PROMPT_TOO_LONG,
                f"prompt of {seq.num_prompt_tokens} tokens plus max_tokens {seq.max_tokens} exceeds the KV cache of "
                f"{room} tokens; shorten either, or raise --kv-cache-memory",
                param="prompt",
            )
        if seq.adapter is not None and not self._slots.num_slots:
            raise EngineError(Code.UNSUPPORTED, "adapters are off; start with --max-loras 1 or more", param="model")

    def _check_queue(self, choices: ListOf[Sequence], drain_rate: float) -> None:
        """Free seats count as room, since whoever waits for them is not really queued."""
        config, roster = self._config, self._roster
        seats = config.max_num_seqs - len(roster.running)
        limit = config.max_queue + seats
        config.check_queue(len(choices), roster.num_queued, limit, drain_rate, "the queue is full:")
        rate = drain_rate / max(1, roster.num_tenants_queued)
        queued, limit = roster.num_queued_of(choices[0].tenant), config.max_queue_per_tenant + seats
        config.check_queue(len(choices), queued, limit, rate, "this tenant's queue is full:")

    def _serve_starving(self, now: float, preempted: list[Sequence]) -> None:
        """Host memory and slots for adapters that have none, for as long as taking them from others helps."""
        self._residency.ask_again(now)
        while leaving := self._drainer.update(now, self._roster.holders):
            for seq in leaving:
                self._preempt(seq, preempted)
            self._residency.ask_again(now)
        # Reservations that ended without a preemption may have freed host memory as well.
        self._residency.ask_again(now)

    def _preempt(self, seq: Sequence, preempted: list[Sequence]) -> None:
        self._roster.preempt(seq)
        preempted.append(seq)

    def _grow(self, preempted: list[Sequence]) -> None:
        """Give every running sequence a block for the token sampled last; where there are too few, preempt: first those
        that do not run, then the running ones of least priority."""
        blocks, roster = self._blocks, self._roster
        needy = [seq for seq in roster.running if blocks.needs_block(seq)]
        while len(needy) > blocks.num_free_blocks:
            victim = roster.first_parked() or max(roster.running, key=self._preemption_rank)
            self._preempt(victim, preempted)
            if victim in needy:
                needy.remove(victim)
        for seq in needy:
            blocks.append(seq)

    def _preemption_rank(self, seq: Sequence) -> tuple[bool, float, int]:
        """Highest goes first: not one that recomputes already, of the most served tenant, last in line."""
        return not seq.recomputes, self._share.tenants[seq.tenant], seq.order

    def _continue(self, budget: TokenBudget) -> tuple[list[Sequence], int]:
        """Tokens for the running: decode first. Returns the prefills, in order of admission, and the number of
        sequences that wait for a copy."""
        prefills: list[Sequence] = []
        num_copying = 0
        for seq in self._roster.running:
            if seq.adapter is not None and not self._slots.is_loaded(seq.adapter):
                num_copying += 1
                continue
            num_tokens = seq.num_uncomputed_tokens
            if num_tokens == 1:
                budget.give(seq, 1)
            elif num_tokens:
                prefills.append(seq)
        if prefills:
            budget.continue_prefills(prefills)
        return prefills, num_copying

    def _admit(self, now: float, budget: TokenBudget, preempted: list[Sequence], failed: list[Failure]) -> int:
        """Seat waiting sequences while there are seats, tokens and memory. Returns how many wait for a copy.

        The first in rank that does not fit into memory ends it, lest smaller ones overtake it for ever.
        """
        roster, most = self._roster, self._config.max_num_seqs
        num_copying = num_put_off = 0
        while budget.left and len(roster.running) < most and num_put_off <= most:
            seq, is_aged = self._next(now)
            if seq is None:
                break
            matched = [] if seq.holds_memory else self._blocks.match_prefix(seq)
            awaited = self._worth_awaiting(seq, matched)
            if awaited is not None:
                roster.put_off(seq, awaited)
                num_put_off += 1
                continue
            if not self._make_room(seq, matched, preempted):
                break
            try:
                roster.take_slot(seq)
            except EngineError as error:
                roster.remove(seq)
                failed.append(Failure(seq, error))
                continue
            roster.seat(seq, matched)
            self._since_aged = 0 if is_aged else self._since_aged + 1
            if seq.adapter is None or self._slots.is_loaded(seq.adapter):
                budget.give(seq, budget.left)
            else:
                num_copying += 1
        return num_copying

    def _next(self, now: float) -> tuple[Sequence | None, bool]:
        """Who is admitted next, and whether for age. What cannot get a slot now is passed over, whatever its rank."""
        for digest, _victim in self._slots.reservations:
            first = self._queue.first_of(digest)
            if first is not None and self._slots.can_acquire(digest) and self._residency.is_hosted(digest):
                return first, False
        lanes = (Lane.RESIDENT, Lane.ABSENT) if self._slots.has_room else (Lane.RESIDENT,)
        if self._since_aged >= self._config.aged_every - 1:
            oldest = self._queue.oldest(lanes)
            if oldest is not None and now - oldest.waiting_since >= self._config.max_wait_s:
                return oldest, True
        return self._queue.fairest(lanes), False

    def _worth_awaiting(self, seq: Sequence, matched: list[int]) -> bytes | None:
        """The block after which `seq` should start, if a running sequence is about to compute what it needs next."""
        if seq.holds_memory or not self._blocks.enable_prefix_caching:
            return None
        shareable = (seq.num_tokens - 1) // self._blocks.block_size
        return self._roster.sharing.worth_following(seq.block_hashes[:shareable], len(matched))

    def _make_room(self, seq: Sequence, matched: list[int], preempted: list[Sequence]) -> bool:
        """Whether memory suffices for all tokens of `seq` plus a block for each running sequence to grow into, if need
        be at the cost of sequences that do not run."""
        roster = self._roster
        missing = self._num_missing(seq, matched)
        if missing <= 0:
            return True
        if missing > sum(len(other.block_table) for other in roster.parked if other is not seq):
            return False
        while self._num_missing(seq, matched) > 0:
            victim = roster.first_parked(but=seq)
            if victim is None:
                return False
            self._preempt(victim, preempted)
        return True

    def _num_missing(self, seq: Sequence, matched: list[int]) -> int:
        """Blocks that must come free before `seq` is seated."""
        blocks = self._blocks
        if seq.holds_memory:
            return int(blocks.needs_block(seq)) - blocks.num_free_blocks
        return blocks.num_blocks_to_take(seq, matched) + len(self._roster.running) - blocks.num_free_blocks
