"""Random programs for the scheduler: everything that may happen to it, in any order, on the machine that checks it."""

from __future__ import annotations

import random
from collections.abc import Callable

from openlora_engine.errors import Code, EngineError
from openlora_engine.scheduling import SchedulerConfig, Sequence, SequenceStatus

from .engine_scheduling import Machine, Shape, reference

ADAPTERS = (None, "a", "b", "c", "d", "e", "f")
TENANTS = ("x", "y", "z")
PROMPTS = tuple(tuple((letter * 7 + position) % 5 for position in range(24)) for letter in range(3))
"""Prompts are cut from these, so prefixes are shared all the time."""


class Program:
    """A machine with the operations of a random program. Every operation takes its choices from `rng`."""

    def __init__(self, rng: random.Random, shape: Shape, config: SchedulerConfig) -> None:
        self.rng = rng
        self.machine = Machine(shape, config)
        self.expected: list[Sequence] = []
        """Sequences that must end with exactly the model's answer."""
        self.num_refused = 0

    @classmethod
    def random(cls, seed: int) -> Program:
        """A program on a machine of random, mostly tight sizes."""
        rng = random.Random(seed)
        shape = Shape(
            num_blocks=rng.choice((8, 12, 24, 64)),
            num_slots=rng.choice((1, 2, 4)),
            host_capacity=rng.choice((1, 2, 4, 100)),
            prefix_caching=rng.random() < 0.8,
            instant=rng.random() < 0.5,
            copies=rng.random() < 0.3,
        )
        config = SchedulerConfig(
            max_num_seqs=rng.choice((1, 3, 8)),
            max_num_batched_tokens=rng.choice((8, 16, 64)),
            max_queue=40,
            max_queue_per_tenant=20,
            max_wait_s=rng.choice((1.0, 4.0, 50.0)),
            aged_every=rng.choice((1, 4)),
        )
        return cls(rng, shape, config)

    @property
    def operations(self) -> tuple[Callable[[], None], ...]:
        """All operations, the usual ones more than once."""
        return (
            *[self.arrive] * 5,
            *[self.step] * 8,
            *[self.cancel] * 2,
            *[self.pause] * 2,
            *[self.resume] * 2,
            *[self.load] * 2,
            self.fail_load,
            self.copy,
            self.evict,
            self.pin,
            self.unpin,
            self.fail_step,
            self.fail_slot,
            self.wait,
            self.meddle,
        )

    def arrive(self) -> None:
        """A request of one to three choices."""
        rng = self.rng
        prompt = rng.choice(PROMPTS)[: rng.randint(1, 24)]
        try:
            self.expected += self.machine.add(
                list(prompt),
                max_tokens=rng.choice((0, 1, 3, 10, 20)),
                adapter=rng.choice(ADAPTERS),
                tenant=rng.choice(TENANTS),
                salt=rng.choice(("", "", "salt")),
                n=rng.choice((1, 1, 1, 3)),
            )
        except EngineError as error:
            assert error.code in {Code.BUSY, Code.PROMPT_TOO_LONG}, error
            assert (error.retry_after_s is not None) == (error.code is Code.BUSY)
            self.num_refused += 1

    def step(self) -> None:
        """A whole step. It computes something, unless everybody is paused or waits for what is under way."""
        machine = self.machine
        schedule = machine.begin()
        self._forget(failure.seq for failure in schedule.failed)
        if not schedule.chunks and not schedule.num_copying and not schedule.failed:
            awake = {seq.status for seq in machine.scheduler.live} - {SequenceStatus.PAUSED}
            assert awake <= {SequenceStatus.WAITING_ADAPTER}, "no progress"
            assert not awake or machine.host.loading, "no progress, and no load under way"
        machine.end(schedule)
        machine.now += 1.0

    def fail_step(self) -> None:
        """A step runs out of memory; sometimes one of its sequences is dropped for it."""
        schedule = self.machine.begin()
        self._forget(failure.seq for failure in schedule.failed)
        self.machine.scheduler.abandon(schedule)
        if schedule.chunks and self.rng.random() < 0.5:
            self._cancel(self.rng.choice(schedule.chunks).seq)

    def meddle(self) -> None:
        """Things happen while a step runs."""
        schedule = self.machine.begin()
        self._forget(failure.seq for failure in schedule.failed)
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice(
                (self.arrive, self.cancel, self.pause, self.resume, self.load, self.fail_load, self.evict, self.pin)
            )()
            self.machine.scheduler.check_integrity()
        self.machine.end(schedule)

    def cancel(self) -> None:
        """Any live sequence, wherever it is."""
        if (seq := self._any()) is not None:
            self._cancel(seq)

    def pause(self) -> None:
        """Any live sequence."""
        if (seq := self._any()) is not None:
            assert self.machine.scheduler.pause(seq.seq_id)

    def resume(self) -> None:
        """Any live sequence, most often a paused one."""
        paused = [seq for seq in self.machine.scheduler.live if seq.status is SequenceStatus.PAUSED]
        seq = self.rng.choice(paused) if paused else self._any()
        if seq is not None:
            assert self.machine.scheduler.resume(seq.seq_id, self.machine.now)

    def load(self) -> None:
        """The oldest load ends well."""
        if (digest := self.machine.host.finish_load()) is not None:
            self.machine.scheduler.adapter_ready(digest, self.machine.now)

    def fail_load(self) -> None:
        """The oldest load fails."""
        if (digest := self.machine.host.fail_load()) is not None:
            dropped = self.machine.scheduler.adapter_failed(digest)
            assert all(seq.status is SequenceStatus.FINISHED and seq.adapter == digest for seq in dropped)
            self._forget(dropped)

    def copy(self) -> None:
        """Copies into slots end."""
        self.machine.loader.finish_copies()

    def evict(self) -> None:
        """Someone unloads an adapter: refused while it runs."""
        digest = self.rng.choice(ADAPTERS[1:])
        assert digest is not None
        in_use = self.machine.slots.num_refs(digest) > 0
        try:
            self.machine.slots.evict(digest)
            assert not in_use
            assert digest not in self.machine.slots
        except EngineError as error:
            assert in_use
            assert error.code is Code.ADAPTER_IN_USE

    def pin(self) -> None:
        """Any adapter, while one slot is left, and host memory for one (which is the host tier's to see to)."""
        digest, slots = self.rng.choice(ADAPTERS[1:]), self.machine.slots
        assert digest is not None
        if (
            sum(slots.is_pinned(other) for other in ADAPTERS if other is not None)
            >= self.machine.shape.host_capacity - 1
        ):
            return
        try:
            slots.pin(digest)
        except EngineError as error:
            assert error.code is Code.BAD_REQUEST

    def unpin(self) -> None:
        """Any adapter."""
        digest = self.rng.choice(ADAPTERS[1:])
        assert digest is not None
        self.machine.slots.unpin(digest)

    def fail_slot(self) -> None:
        """The next load of some adapter into a slot fails."""
        digest = self.rng.choice(ADAPTERS[1:])
        assert digest is not None
        self.machine.loader.fails.add(digest)

    def wait(self) -> None:
        """Time passes."""
        self.machine.now += self.rng.choice((0.1, 3.0, 60.0))

    def settle(self) -> None:
        """Whatever is live ends; every answer is the model's own, and nothing stays held."""
        machine = self.machine
        machine.loader.fails.clear()
        for digest in ADAPTERS[1:]:
            assert digest is not None
            machine.slots.unpin(digest)
        for seq in machine.scheduler.live:
            machine.scheduler.resume(seq.seq_id, machine.now)
        machine.run()
        for seq in self.expected:
            assert seq.output_token_ids == reference(seq), f"{seq} was led astray"
        machine.check_empty()

    def _any(self) -> Sequence | None:
        live = self.machine.scheduler.live
        return self.rng.choice(live) if live else None

    def _cancel(self, seq: Sequence) -> None:
        assert self.machine.scheduler.cancel(seq.seq_id) is seq
        assert self.machine.scheduler.cancel(seq.seq_id) is None
        self._forget([seq])

    def _forget(self, dropped: object) -> None:
        assert not isinstance(dropped, str)
        gone = set(dropped)  # type: ignore[call-overload]
        self.expected = [seq for seq in self.expected if seq not in gone]
