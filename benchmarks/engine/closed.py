"""Figures of one model and 16 adapters: the closed batch, one stream, a long prompt, and whether a run ever stalls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from .adapters import ALL_R16
from .drivers import Driver
from .figure import Bench, Outcome, Result, Target, ratio
from .huggingface import HuggingFace
from .ours import OurEngine
from .over_http import OurServer
from .trace import median
from .workloads import Workload, closed_batch

NUM_ADAPTERS = 16
STALL = 0.7
"""A run below this share of the median counts as stalled."""


def tokens_per_s(driver: Driver, workload: Workload | Callable[[int], Workload]) -> Callable[[int], float]:
    """A measure: output tokens a second of a driver on a workload, or on the one of each round."""
    return lambda index: driver.run(workload if isinstance(workload, Workload) else workload(index)).output_tokens_per_s


def closed(bench: Bench) -> Outcome:
    """32 requests at once, 16 adapters r16 on all 7 linears, 64 tokens in, 64 out."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(NUM_ADAPTERS)

    def mixed(seed: int) -> Workload:
        return closed_batch(names, seed=seed)

    def base(seed: int) -> Workload:
        return closed_batch((), seed=seed)

    with (
        closing(OurEngine(adapters.folder)) as ours,
        closing(OurServer(adapters.folder)) as server,
        closing(HuggingFace(bench.model)) as plain,
        closing(HuggingFace(bench.model, {name: adapters.path(name) for name in names})) as peft,
    ):
        ours.resolve(*names)
        for driver in (ours, server, plain, peft):  # nothing is timed that happens once
            driver.run(closed_batch(() if driver is plain else names, output=2, seed=99))
        peft_label = "PEFT mixed batch, 16 adapters"
        measures = {
            "OpenLoRA, 16 adapters": tokens_per_s(ours, mixed),
            "OpenLoRA, base": tokens_per_s(ours, base),
            "transformers generate, base": tokens_per_s(plain, base),
            "OpenLoRA over HTTP, 16 adapters": tokens_per_s(server, mixed),
            peft_label: tokens_per_s(peft, mixed),
        }
        outcome = bench.in_turn(measures, repeats=bench.repeats, sparse=(peft_label,))
    mine = "OpenLoRA, 16 adapters"
    outcome.results = [
        Result("16 adapters ÷ PEFT mixed batch", ratio(outcome, mine, peft_label), Target(6)),
        Result(
            "16 adapters ÷ transformers generate, base",
            ratio(outcome, mine, "transformers generate, base"),
            Target(1.6),
        ),
        Result("16 adapters ÷ our own base", ratio(outcome, mine, "OpenLoRA, base"), Target(0.9)),
        Result("over HTTP ÷ in process", ratio(outcome, "OpenLoRA over HTTP, 16 adapters", mine)),
    ]
    return outcome


def stream(bench: Bench) -> Outcome:
    """One request at a time, 64 in, 64 out: with an adapter on ours, the base alone on transformers."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(1)
    with closing(OurEngine(adapters.folder)) as ours, closing(HuggingFace(bench.model)) as plain:
        ours.resolve(*names)

        def one(adapter: bool) -> Callable[[int], Workload]:
            return lambda seed: closed_batch(names if adapter else (), requests=1, seed=seed)

        ours.run(closed_batch(names, requests=1, output=2, seed=99))
        plain.run(closed_batch((), requests=1, output=2, seed=99))
        measures = {
            "OpenLoRA, one adapter": tokens_per_s(ours, one(adapter=True)),
            "OpenLoRA, base": tokens_per_s(ours, one(adapter=False)),
            "transformers generate, base": tokens_per_s(plain, one(adapter=False)),
        }
        outcome = bench.in_turn(measures, repeats=bench.repeats + 2)
    value = ratio(outcome, "OpenLoRA, one adapter", "transformers generate, base")
    outcome.results = [Result("single stream with an adapter ÷ transformers generate, base", value, Target(4))]
    return outcome


def prefill(bench: Bench) -> Outcome:
    """A prompt of 512 tokens to its first token, beside one forward pass of transformers that samples nothing."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(1)
    with closing(OurEngine(adapters.folder)) as ours, closing(HuggingFace(bench.model)) as plain:
        ours.resolve(*names)

        def long(seed: int, *, adapter: bool = False) -> Workload:
            return closed_batch(names if adapter else (), requests=1, prompt=512, output=1, seed=seed)

        measures: dict[str, Callable[[int], float]] = {
            "OpenLoRA, base": lambda seed: ours.run(long(seed)).first_token_s(0.5),
            "OpenLoRA, one adapter": lambda seed: ours.run(long(1000 + seed, adapter=True)).first_token_s(0.5),
            "transformers forward, base": lambda seed: plain.forward_s(long(seed).requests[0].prompt),
        }
        for measure in measures.values():
            measure(99)
        outcome = bench.in_turn(measures, repeats=bench.repeats + 4, unit="s")
    outcome.results = [
        Result(
            "prefill of 512 tokens ÷ transformers forward (speed)",
            ratio(outcome, "transformers forward, base", "OpenLoRA, base"),
            Target(1.1),
        ),
        Result("the same with an adapter", ratio(outcome, "transformers forward, base", "OpenLoRA, one adapter")),
    ]
    return outcome


def stalls(bench: Bench) -> Outcome:
    """The closed batch 20 times over: does a run ever stall?"""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(NUM_ADAPTERS)
    with closing(OurEngine(adapters.folder)) as ours:
        ours.resolve(*names)
        ours.run(closed_batch(names, output=2, seed=99))
        measure = tokens_per_s(ours, lambda seed: closed_batch(names, seed=seed))
        outcome = bench.in_turn({"OpenLoRA, 16 adapters": measure}, repeats=5 if bench.quick else 20)
    samples = outcome.samples["OpenLoRA, 16 adapters"]
    stalled = sum(sample < STALL * median(samples) for sample in samples)
    outcome.results = [
        Result(
            f"stalled runs of {len(samples)} (below {STALL:.0%} of the median)", stalled, Target(0, at_most=True), ""
        ),
        Result("slowest run ÷ median run", min(samples) / median(samples)),
    ]
    return outcome
