"""Which of several engines runs a request: one that knows its adapters, unless another is much less busy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPILL = 8
"""Requests by which an engine that knows the adapters may be ahead of the least busy one before that one learns them:
loading an adapter costs one request some time, waiting behind eight more costs all of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One engine of a base, as a request finds it."""

    up: bool
    busy: int
    """Requests that it runs or is about to."""
    knows: int
    """How many of the request's adapters it has loaded."""
    chosen: int
    """A number that grows with every choice: the lowest was left out for longest."""


def choose(candidates: Sequence[Candidate]) -> int:
    """The place of the engine to run on. Where none is up, it is the first: that one says why it does not serve."""
    up = [place for place, each in enumerate(candidates) if each.up]
    if not up:
        return 0
    least = min(candidates[place].busy for place in up)
    open_ones = [place for place in up if candidates[place].busy < least + SPILL]
    return min(open_ones, key=lambda place: _order(candidates[place]))


def _order(each: Candidate) -> tuple[int, int, int]:
    return -each.knows, each.busy, each.chosen
