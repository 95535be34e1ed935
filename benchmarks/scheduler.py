"""What scheduling costs: microseconds of `schedule` and `advance` a step, and of arrivals and cancels in a long queue.

Run `python benchmarks/scheduler.py [--steps N] [--json]`. Adapters load at once and the model is free, so all time is
the scheduler's own: processor time of the thread, so that a busy machine does not show. A cycle replaces each finished
sequence by a new one.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median, quantiles

from openlora_engine.scheduling import (
    BlockManager,
    PrefixHasher,
    Schedule,
    Scheduler,
    SchedulerConfig,
    Sequence,
    SequenceStatus,
    SlotPool,
)

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Figures:
    """Microseconds an operation."""

    case: str
    operation: str
    p50_us: float
    p99_us: float


class Host:
    """Every adapter is in host memory."""

    def is_ready(self, _digest: str) -> bool:
        return True

    def request(self, _digest: str) -> bool:
        return True

    def release(self, _digest: str) -> None:
        return


class Loader:
    """Slots on the CPU: loading sets an address."""

    def load(self, _slot: int, _digest: str) -> None:
        return

    def is_loaded(self, _slot: int, _digest: str) -> bool:
        return True

    def unload(self, _slot: int, _digest: str) -> None:
        return


class Bench:
    """A scheduler with `num_seqs` seats, fed with sequences of `adapters` adapters and `tenants` tenants."""

    def __init__(self, num_seqs: int, *, adapters: int, tenants: int, slots: int, host: Host | None = None) -> None:
        num_blocks = num_seqs * (PROMPT_TOKENS + OUTPUT_TOKENS) // BLOCK_SIZE * 2
        config = SchedulerConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(512, num_seqs),
            max_queue=1 << 20,
            max_queue_per_tenant=1 << 20,
        )
        self.scheduler = Scheduler(
            config,
            BlockManager(num_blocks, PrefixHasher("bench", BLOCK_SIZE)),
            SlotPool(slots, Loader()),
            host or Host(),
        )
        self.adapters = adapters
        self.tenants = tenants
        self.now = 0.0
        self.count = 0

    def sequence(self) -> Sequence:
        """Prompts differ, so nothing is shared."""
        self.count += 1
        number = self.count
        return Sequence(
            seq_id=f"r{number}/0",
            request_id=f"r{number}",
            token_ids=[number, *range(1, PROMPT_TOKENS)],
            num_prompt_tokens=PROMPT_TOKENS,
            max_tokens=OUTPUT_TOKENS + number % 16 - 8,
            adapter=f"sha256:{number % self.adapters}" if self.adapters else None,
            tenant=f"tenant {number % self.tenants}",
        )

    def add(self) -> str:
        """One arrival; its name."""
        seq = self.sequence()
        self.scheduler.add(seq, self.now)
        return seq.seq_id

    def schedule(self) -> Schedule:
        self.now += 0.02
        return self.scheduler.schedule(self.now)

    def advance(self, schedule: Schedule) -> None:
        """As the engine does: advance, and finish what is done."""
        self.scheduler.advance(schedule, [7] * sum(chunk.samples for chunk in schedule.chunks))
        for seq, _num_tokens, _samples in schedule.chunks:
            if seq.status is SequenceStatus.RUNNING and seq.num_output_tokens >= seq.max_tokens:
                self.scheduler.finish(seq.seq_id)


def timed(work: Callable[[], object]) -> float:
    """Processor microseconds of one call."""
    start = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start) / 1000


def steady(case: str, bench: Bench, waiting: int, steps: int) -> Iterator[Figures]:
    """A full batch with `waiting` more in the queue, refilled as sequences finish."""
    for _ in range(waiting):
        bench.add()
    target = len(bench.scheduler)
    for _ in range(20):
        bench.advance(bench.schedule())
    schedules, advances, arrivals = [], [], []
    for _ in range(steps):
        while len(bench.scheduler) < target:
            arrivals.append(timed(bench.add))
        start = time.thread_time_ns()
        schedule = bench.schedule()
        middle = time.thread_time_ns()
        bench.advance(schedule)
        schedules.append((middle - start) / 1000)
        advances.append((time.thread_time_ns() - middle) / 1000)
    yield figures(case, "schedule", schedules)
    yield figures(case, "advance", advances)
    yield figures(case, "schedule + advance", [a + b for a, b in zip(schedules, advances, strict=True)])
    if arrivals:
        yield figures(case, "add", arrivals)


def storm(case: str, bench: Bench, waiting: int) -> Iterator[Figures]:
    """`waiting` arrivals, a step, then all of them cancelled."""
    names: list[str] = []
    yield figures(case, "add", [timed(lambda: names.append(bench.add())) for _ in range(waiting)])
    yield figures(case, "first step", [timed(lambda: bench.advance(bench.schedule()))])
    yield figures(case, "cancel", [timed(lambda name=name: bench.scheduler.cancel(name)) for name in names[::-1]])


def figures(case: str, operation: str, samples: list[float]) -> Figures:
    p99 = quantiles(samples, n=100)[98] if len(samples) > 1 else samples[0]
    return Figures(case, operation, round(median(samples), 1), round(p99, 1))


def run(steps: int) -> Iterator[Figures]:
    for num_seqs in (32, 256):
        yield from steady(f"{num_seqs} running, base", Bench(num_seqs, adapters=0, tenants=1, slots=1), num_seqs, steps)
        yield from steady(
            f"{num_seqs} running, 16 adapters, 8 tenants",
            Bench(num_seqs, adapters=16, tenants=8, slots=32),
            num_seqs,
            steps,
        )
    yield from steady(
        "32 running, 10,000 waiting, 2,000 adapters, 8 slots",
        Bench(32, adapters=2000, tenants=50, slots=8),
        10_000,
        steps,
    )
    yield from steady("32 running, 10,000 waiting, base", Bench(32, adapters=0, tenants=50, slots=1), 10_000, steps)
    yield from storm("storm of 10,000", Bench(32, adapters=2000, tenants=50, slots=8), 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gc.disable()
    rows = list(run(arguments.steps))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'case':55} {'operation':20} {'p50 µs':>9} {'p99 µs':>9}")
    for row in rows:
        print(f"{row.case:55} {row.operation:20} {row.p50_us:9.1f} {row.p99_us:9.1f}")


if __name__ == "__main__":
    main()
