"""What a figure is: a name, a target, samples taken in turn in one run, a result beside the target."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openlora_engine.default_model import default_model_dir

from .adapters import AdapterKind, AdapterSet
from .machine import NOISY, watched
from .trace import median


@dataclass(frozen=True)
class Target:
    """What a figure shall reach: at least or at most a bound; no bound where it is only reported."""

    bound: float | None = None
    at_most: bool = False

    def met_by(self, value: float) -> bool | None:
        """Whether the value reaches it; None without a bound."""
        if self.bound is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        """`≥ 6`."""
        return "–" if self.bound is None else f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Result:
    """One line of the table. `value` is a ratio unless `unit` says otherwise."""

    label: str
    value: float
    target: Target = field(default_factory=Target)
    unit: str = "×"
    note: str = ""


@dataclass
class Outcome:
    """A measured figure: its lines, and every sample that they come from by engine."""

    results: list[Result] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)
    """Share of the machine that other processes took during each sample."""
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """What every figure needs: where adapters are, how often to repeat, whether to be quick or to do the whole grid."""

    folder: Path
    repeats: int = 3
    quick: bool = False
    whole: bool = False
    model: Path = field(default_factory=default_model_dir)

    def adapters(self, kind: AdapterKind) -> AdapterSet:
        """The set of a kind, written as far as it was asked for."""
        return AdapterSet(self.folder, kind)

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def in_turn(
        self,
        measures: Mapping[str, Callable[[int], float]],
        *,
        repeats: int,
        unit: str = "tok/s",
        sparse: Collection[str] = (),
    ) -> Outcome:
        """Take every measure once a round; those in `sparse`, which take long, not in the first of several."""
        outcome = Outcome()
        for index in range(repeats):
            some = {name: measure for name, measure in measures.items() if index or repeats == 1 or name not in sparse}
            self.one_round(outcome, index, some, unit)
        return outcome

    def one_round(
        self, outcome: Outcome, index: int, measures: Mapping[str, Callable[[int], float]], unit: str = "tok/s"
    ) -> None:
        """Take every measure once and add the samples; every other round backwards, so that drift hits all alike."""
        for name in list(measures)[:: 1 if index % 2 == 0 else -1]:
            with watched() as watch:
                value = measures[name](index)
            outcome.samples.setdefault(name, []).append(value)
            outcome.others.setdefault(name, []).append(watch.others)
            noise = f"   (others took {watch.others:.0%} of the machine)" if watch.others > NOISY else ""
            self.say(f"  {name:<44} {value:10.4g} {unit}{noise}")


def ratio(outcome: Outcome, above: str, below: str) -> float:
    """Median over median."""
    return median(outcome.samples[above]) / median(outcome.samples[below])
