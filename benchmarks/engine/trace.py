"""When each token of each request came, and what follows from it: throughput, first-token and inter-token times.

Standard library only: the peers' processes write traces too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class Trace:
    """One request: arrival and every token's time, seconds since the run began, and the tokens where they are known."""

    arrival_s: float
    token_times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        """Arrival until the first token."""
        return self.token_times[0] - self.arrival_s

    @property
    def gaps(self) -> list[float]:
        """Times between one token and the next."""
        return [later - earlier for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass(frozen=True)
class Run:
    """One workload served once, a trace a request in the workload's order."""

    traces: tuple[Trace, ...]

    @property
    def output_tokens_per_s(self) -> float:
        """All output tokens over the time from the first arrival to the last token: prefill included."""
        tokens = sum(len(trace.token_times) for trace in self.traces)
        end = max(trace.token_times[-1] for trace in self.traces)
        return tokens / (end - min(trace.arrival_s for trace in self.traces))

    def first_token_s(self, quantile: float) -> float:
        """Quantile over requests of the time to the first token."""
        return quantile_of((trace.first_token_s for trace in self.traces), quantile)

    def inter_token_s(self, quantile: float) -> float:
        """Quantile over all gaps between tokens."""
        return quantile_of((gap for trace in self.traces for gap in trace.gaps), quantile)

    def to_json(self) -> str:
        """One line, for a process that cannot be handed objects."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The inverse of `to_json`."""
        value: dict[str, Any] = json.loads(line)
        return cls(tuple(Trace(**trace) for trace in value["traces"]))


def quantile_of(values: Iterable[float], quantile: float) -> float:
    """The value below which this share of them lies, between neighbours linearly."""
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)
