"""The grid: popularity × number of adapters × rank × slots, on Poisson arrivals of unequal lengths, and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from .adapters import KINDS, AdapterKind
from .figure import Bench, Outcome
from .huggingface import HuggingFace
from .machine import watched
from .ours import OurEngine
from .workloads import Workload, open_arrivals, popularity

POPULARITIES = ("distinct", "uniform", "zipf", "identical")
COUNTS = (1, 16, 256, 2_000)
KIND_NAMES = ("qv-r8", "qv-r16", "qv-r64", "qv-mixed")
SLOTS = (32, 8)
PEFT_MAX_ADAPTERS = 16
"""PEFT needs a second to add an adapter, and slows with each."""
RATE = 8.0
"""Arrivals a second, more than any engine here serves: what counts is throughput, with a queue as in an overload."""


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    kind: AdapterKind
    count: int
    popularity: str
    slots: int

    @property
    def label(self) -> str:
        """How the table names it."""
        return f"{self.kind.name}, {self.count} adapters, {self.popularity}, {self.slots} slots"


def cells(*, whole: bool) -> Sequence[Cell]:
    """Those that differ: one adapter knows no popularity. Not `whole`: each axis through one point, ranks at 256."""
    axes = (
        Cell(KINDS[kind], count, choice, slots)
        for kind in KIND_NAMES
        for count in COUNTS
        for choice in (POPULARITIES if count > 1 else ("identical",))
        for slots in SLOTS
    )
    if whole:
        return tuple(axes)
    return tuple(
        cell
        for cell in axes
        if (cell.kind.name == "qv-r8" and cell.slots == SLOTS[0])
        or (cell.kind.name == "qv-r8" and cell.popularity == "uniform" and cell.count >= 16)
        or (cell.popularity == "uniform" and cell.count == 256 and cell.slots == SLOTS[0])
    )


def grid(bench: Bench) -> Outcome:
    """Throughput and first-token times of every cell, one run each; then the base alone and PEFT where it can."""
    outcome = Outcome()
    todo = cells(whole=bench.whole)
    for kind in dict.fromkeys(cell.kind for cell in todo):
        adapters = bench.adapters(kind)
        for slots in SLOTS:
            mine = [cell for cell in todo if cell.kind == kind and cell.slots == slots]
            if not mine:
                continue
            names = adapters.names(max(cell.count for cell in mine))
            with closing(OurEngine(adapters.folder, max_loras=slots)) as ours:
                ours.run(workload("identical", names[:1], seed=99))
                for number, cell in enumerate(mine):
                    record(
                        bench, outcome, cell.label, ours, workload(cell.popularity, names[: cell.count], seed=number)
                    )
                if kind.name == KIND_NAMES[0] and slots == SLOTS[0]:
                    record(bench, outcome, "base, OpenLoRA", ours, workload("base", (), seed=98))
    kind = KINDS[KIND_NAMES[0]]
    adapters = bench.adapters(kind)
    names = adapters.names(PEFT_MAX_ADAPTERS)
    with closing(HuggingFace(bench.model)) as plain:
        record(bench, outcome, "base, transformers generate", plain, workload("base", (), seed=98))
    with closing(HuggingFace(bench.model, {name: adapters.path(name) for name in names})) as peft:
        record(bench, outcome, f"{kind.name}, 16 adapters, uniform, PEFT", peft, workload("uniform", names, seed=1))
    return outcome


def workload(choice: str, names: tuple[str, ...], *, seed: int) -> Workload:
    """48 requests of unequal lengths."""
    pick = popularity(choice, names) if names else (lambda _: None)
    return open_arrivals(pick, name=choice, requests=48, rate=RATE, seed=seed)


def record(bench: Bench, outcome: Outcome, label: str, driver: OurEngine | HuggingFace, work: Workload) -> None:
    """One run: tok/s, then median and p99 time to the first token."""
    with watched() as watch:
        run = driver.run(work)
    values = [run.output_tokens_per_s, run.first_token_s(0.5), run.first_token_s(0.99)]
    outcome.samples[label] = values
    outcome.others[label] = [watch.others]
    bench.say(f"  {label:<56} {values[0]:7.1f} tok/s, TTFT {values[1]:6.2f} s, p99 {values[2]:6.2f} s")
