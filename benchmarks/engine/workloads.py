"""What is asked of every engine alike: requests with arrival times, drawn from a seed. Standard library only."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

VOCABULARY = range(100, 49_000)  # of SmolLM2: no control token, no token that a peer reserves


@dataclass(frozen=True)
class Request:
    """One prompt; `adapter` is the name of an adapter, None for the base. Every engine generates all `max_tokens`."""

    arrival_s: float
    prompt: tuple[int, ...]
    max_tokens: int
    adapter: str | None = None


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival."""

    name: str
    requests: tuple[Request, ...]

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters used, sorted."""
        return tuple(sorted({request.adapter for request in self.requests if request.adapter is not None}))

    def to_json(self) -> str:
        """One line, for a process that cannot be handed objects."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The inverse of `to_json`."""
        value: dict[str, Any] = json.loads(line)
        requests = (Request(**{**item, "prompt": tuple(item["prompt"])}) for item in value["requests"])
        return cls(value["name"], tuple(requests))


def closed_batch(
    adapters: Sequence[str], *, requests: int = 32, prompt: int = 64, output: int = 64, seed: int = 0
) -> Workload:
    """All at once, equal lengths, adapters in turn: what favours a static batch most. No adapters: base only."""
    draw = random.Random(f"closed {seed}")
    name = f"closed {requests}x{prompt}+{output}, {len(adapters)} adapters"
    names = itertools.islice(itertools.cycle(adapters or (None,)), requests)
    return Workload(name, tuple(Request(0.0, _prompt(draw, prompt), output, adapter) for adapter in names))


def open_arrivals(
    pick: Callable[[random.Random], str | None],
    *,
    name: str,
    requests: int,
    rate: float | None,
    prompt: tuple[int, int] = (16, 112),
    output: tuple[int, int] = (16, 48),
    seed: int = 0,
) -> Workload:
    """Poisson arrivals at `rate` requests a second (None: all at once), lengths uniform within their bounds.

    Two workloads of one seed differ in their adapters alone, whatever `pick` draws.
    """
    draw, choice = random.Random(f"open {seed}"), random.Random(f"pick {seed}")
    now, drawn = 0.0, []
    for _ in range(requests):
        now += draw.expovariate(rate) if rate is not None else 0.0
        drawn.append(Request(now, _prompt(draw, draw.randint(*prompt)), draw.randint(*output), pick(choice)))
    return Workload(name, tuple(drawn))


def popularity(kind: str, adapters: Sequence[str]) -> Callable[[random.Random], str | None]:
    """How requests choose adapters, Punica's four: distinct, uniform, zipf (exponent 1.0), identical."""
    if kind == "distinct":
        turn = itertools.cycle(adapters)
        return lambda _: next(turn)
    if kind == "uniform":
        return lambda draw: draw.choice(adapters)
    if kind == "identical":
        return lambda _: adapters[0]
    if kind == "zipf":
        weights = list(itertools.accumulate(1 / rank for rank in range(1, len(adapters) + 1)))
        return lambda draw: draw.choices(adapters, cum_weights=weights)[0]
    raise ValueError(f"no such popularity: {kind}")


def _prompt(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.choices(VOCABULARY, k=length))
