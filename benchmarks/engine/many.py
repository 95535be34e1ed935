"""Figures of many adapters: 2,000 by Zipf beside one, and a working set beyond the slots."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from .adapters import QV_R8
from .closed import tokens_per_s
from .figure import Bench, Outcome, Result, Target, ratio
from .ours import OurEngine
from .trace import median
from .workloads import Workload, open_arrivals, popularity

NUM_MANY = 2_000
SLOTS = 32
LOAD = 0.6
"""Poisson arrivals come at this share of the rate that the engine sustains when all come at once."""


def zipf(bench: Bench) -> Outcome:
    """2,000 adapters q,v r8 by Zipf(1.0), none mentioned before, beside the same requests all on one."""
    adapters = bench.adapters(QV_R8)
    names = adapters.names(NUM_MANY)
    choices = {"1 adapter": ("identical", names), "2,000 adapters, Zipf": ("zipf", names)}
    with closing(OurEngine(adapters.folder)) as ours:
        outcome = compare(bench, ours, choices)
    outcome.results = [
        Result(
            "2,000 adapters ÷ 1 adapter: throughput",
            ratio(outcome, "2,000 adapters, Zipf: tok/s", "1 adapter: tok/s"),
            Target(0.97),
        ),
        Result(
            "2,000 adapters ÷ 1 adapter: p99 TTFT",
            ratio(outcome, "2,000 adapters, Zipf: p99 TTFT, s", "1 adapter: p99 TTFT, s"),
            Target(1.5, at_most=True),
        ),
    ]
    return outcome


def working_set(bench: Bench) -> Outcome:
    """Uniform use of four times as many adapters as there are slots, beside as many as slots."""
    adapters = bench.adapters(QV_R8)
    names = adapters.names(4 * SLOTS)
    few, many = f"{SLOTS} adapters", f"{4 * SLOTS} adapters"
    choices = {few: ("uniform", names[:SLOTS]), many: ("uniform", names)}
    with closing(OurEngine(adapters.folder, max_loras=SLOTS)) as ours:
        ours.resolve(*names)
        outcome = compare(bench, ours, choices)
    outcome.results = [
        Result(
            "working set 4 × the slots ÷ = slots: throughput",
            ratio(outcome, f"{many}: tok/s", f"{few}: tok/s"),
            Target(0.9),
        ),
        Result(
            "working set 4 × the slots ÷ = slots: median TTFT",
            ratio(outcome, f"{many}: median TTFT, s", f"{few}: median TTFT, s"),
            Target(2, at_most=True),
        ),
    ]
    return outcome


def compare(bench: Bench, ours: OurEngine, choices: Mapping[str, tuple[str, tuple[str, ...]]]) -> Outcome:
    """Throughput with all requests there at once; TTFT with Poisson arrivals at a fixed share of that rate."""
    requests = 32 if bench.quick else 64
    ours.run(open_arrivals(lambda _: None, name="warm-up", requests=8, rate=None, seed=99))

    def workload(kind: str, names: tuple[str, ...], seed: int, rate: float | None) -> Workload:
        return open_arrivals(
            popularity(kind, names), name=f"{kind} of {len(names)}", requests=requests, rate=rate, seed=seed
        )

    outcome, rate = Outcome(), 0.0
    for index in range(min(bench.repeats, 2)):
        # Other prompts every time: one seen before would come out of the prefix cache.
        seeds = {name: 100 * place + 10 * index for place, name in enumerate(choices)}

        full = {name: workload(*choices[name], seeds[name], None) for name in choices}
        bench.one_round(outcome, index, {f"{name}: tok/s": tokens_per_s(ours, work) for name, work in full.items()})
        if not rate:
            tokens = sum(request.max_tokens for request in workload("identical", ("-",), 0, None).requests)
            rate = LOAD * median([sample[0] for sample in outcome.samples.values()]) / (tokens / requests)
            outcome.settings["Poisson arrivals"] = f"{rate:.2f} requests/s"
        for name in list(choices)[:: 1 if index % 2 == 0 else -1]:
            run = ours.run(workload(*choices[name], seeds[name] + 1, rate))
            for label, quantile in (("median", 0.5), ("p99", 0.99)):
                value = run.first_token_s(quantile)
                outcome.samples.setdefault(f"{name}: {label} TTFT, s", []).append(value)
                bench.say(f"  {f'{name}: {label} TTFT':<44} {value:10.4g} s")
    outcome.settings["adapters loaded"] = ", ".join(f"{count} from {tier}" for tier, count in ours.loads.items())
    return outcome
