"""What a cold adapter costs: the request that names it first, and those that decode while it loads."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from .adapters import ALL_R16, QV_R8, AdapterKind
from .figure import Bench, Outcome, Result, Target
from .ours import OurEngine
from .trace import Run, median, quantile_of
from .workloads import Request, Workload, closed_batch

NEIGHBOURS, THEIR_TOKENS = 16, 96
GUESTS, GUEST_EVERY_S = 10, 0.5


def cold(bench: Bench) -> Outcome:
    """Adapters that nobody has mentioned, their files dropped from the page cache, beside one that is in its slot."""
    outcome = Outcome()
    for kind in (QV_R8, ALL_R16):
        measure(bench, kind, outcome)
    return outcome


def measure(bench: Bench, kind: AdapterKind, outcome: Outcome) -> None:
    """Both lines of one kind of adapter."""
    adapters = bench.adapters(kind)
    alone = 8 if bench.quick else 16
    names = adapters.names(NEIGHBOURS + 1 + alone + GUESTS * bench.repeats)
    neighbours, warm, fresh = names[:NEIGHBOURS], names[NEIGHBOURS], list(names[NEIGHBOURS + 1 :])

    def next_cold() -> str:
        name = fresh.pop()
        forget_pages(adapters.path(name))
        return name

    with closing(OurEngine(adapters.folder)) as ours:
        ours.resolve(warm, *neighbours)
        ours.run(closed_batch((*neighbours, warm), requests=NEIGHBOURS + 1, output=2, seed=99))
        times: dict[str, list[float]] = {"warm": [], "cold": []}
        for index in range(alone):
            for tier, taken in times.items():
                name = warm if tier == "warm" else next_cold()
                run = ours.run(
                    closed_batch((name,), requests=1, prompt=32, output=1, seed=2 * index + (tier == "warm"))
                )
                taken.append(1e3 * run.first_token_s(0.5))
        gaps: dict[str, list[float]] = {"warm": [], "cold": []}
        for index in range(bench.repeats):
            for tier in gaps if index % 2 == 0 else reversed(gaps):
                guests = [warm if tier == "warm" else next_cold() for _ in range(GUESTS)]
                run = ours.run(among_neighbours(neighbours, guests, seed=100 + 2 * index + (tier == "warm")))
                gaps[tier] += neighbours_gaps(run)
                bench.say(
                    f"  {kind.name}, {tier}: neighbours' p99 {1e3 * quantile_of(neighbours_gaps(run), 0.99):.1f} ms"
                )
    added = median(times["cold"]) - median(times["warm"])
    slower = quantile_of(gaps["cold"], 0.99) / quantile_of(gaps["warm"], 0.99)
    for tier in ("warm", "cold"):
        outcome.samples[f"{kind.name}, {tier}: TTFT, ms"] = times[tier]
        outcome.samples[f"{kind.name}, {tier}: neighbours' p99 inter-token time, ms"] = [
            1e3 * quantile_of(gaps[tier], 0.99)
        ]
    outcome.results += [
        Result(f"cold adapter ({kind.name}) added to TTFT", added, Target(30, at_most=True), "ms"),
        Result(f"others' p99 inter-token time, cold ÷ warm arrivals ({kind.name})", slower, Target(1.1, at_most=True)),
    ]


def among_neighbours(neighbours: tuple[str, ...], guests: list[str], *, seed: int) -> Workload:
    """Streams that decode throughout, and short requests that come one by one."""
    streams = closed_batch(neighbours, requests=NEIGHBOURS, prompt=16, output=THEIR_TOKENS, seed=seed).requests
    short = closed_batch(guests, requests=len(guests), prompt=16, output=2, seed=seed + 1).requests
    arrivals = (
        Request(1.5 + GUEST_EVERY_S * index, request.prompt, request.max_tokens, request.adapter)
        for index, request in enumerate(short)
    )
    return Workload("neighbours and guests", (*streams, *arrivals))


def neighbours_gaps(run: Run) -> list[float]:
    """Times between the steady streams' tokens, once all of them decode."""
    streams = run.traces[:NEIGHBOURS]
    start = max(trace.token_times[0] for trace in streams)
    return [
        later - earlier
        for trace in streams
        for earlier, later in zip(trace.token_times, trace.token_times[1:], strict=False)
        if earlier >= start
    ]


def forget_pages(folder: Path) -> None:
    """Drop an adapter's files from the page cache, so that the next read comes from the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
