"""Which artifacts make room for another: the least recently used that nothing holds on to. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """Something on disk that may go. `last_used` in unix seconds, `footprint` in bytes."""

    artifact: bytes
    footprint: int
    last_used: float
    partial: bool = False
    """A download that nobody works on: goes before anything complete."""


def victims(candidates: Iterable[Candidate], excess: int) -> tuple[Candidate, ...] | None:
    """The first to go until `excess` bytes are free; None when all together are too little."""
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (not c.partial, c.last_used, c.artifact)):
        if excess <= 0:
            break
        chosen.append(candidate)
        excess -= candidate.footprint
    return tuple(chosen) if excess <= 0 else None
