"""What one step runs: chunks of sequences within one token budget. Knows neither queue nor memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import EngineError
from .sequence import Sequence


class ScheduledChunk(NamedTuple):
    """The next `num_tokens` uncomputed tokens of a sequence: rows of one step."""

    seq: Sequence
    num_tokens: int
    samples: bool
    """The chunk reaches the last known token: its logits give the next one. False in the midst of a prompt, and with
    `max_tokens` 0."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sequence that was dropped because its adapter could not be put into a slot."""

    seq: Sequence
    error: EngineError


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step. `chunks` are ordered by slot (the base first), so the rows of one adapter are contiguous."""

    chunks: tuple[ScheduledChunk, ...]
    preempted: tuple[Sequence, ...] = ()
    """Gave their blocks and slot up since the step before; they recompute later and lose no token."""
    failed: tuple[Failure, ...] = ()
    num_copying: int = 0
    """Admitted sequences whose slot is still being filled: with no chunk at all, wait for the copy and call again."""

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)


class TokenBudget:
    """Hands out the tokens of one step: decode first, then prefills in progress, then new ones."""

    def __init__(self, num_tokens: int) -> None:
        self.left = num_tokens
        self._given: dict[Sequence, int] = {}

    def give(self, seq: Sequence, most: int) -> None:
        """Let `seq` compute up to `most` tokens (more), as far as it has tokens and the budget lasts."""
        given = self._given.get(seq, 0)
        num_tokens = min(seq.num_uncomputed_tokens - given, most, self.left)
        if num_tokens > 0:
            self._given[seq] = given + num_tokens
            self.left -= num_tokens

    def continue_prefills(self, prefills: list[Sequence]) -> None:
        """`prefills` in order of admission. The first gets half of what is left, so that it proceeds whatever comes;
        the others follow shortest first, so that a short prompt does not wait for a long one."""
        self.give(prefills[0], -(-self.left // 2))
        for seq in sorted(prefills[1:], key=lambda seq: seq.num_uncomputed_tokens):
            self.give(seq, self.left)

    def chunks(self) -> tuple[ScheduledChunk, ...]:
        """What was handed out, by slot."""
        chunks = [
            ScheduledChunk(seq, given, given == seq.num_uncomputed_tokens and seq.max_tokens > 0)
            for seq, given in self._given.items()
        ]
        chunks.sort(key=_slot)
        return tuple(chunks)


def _slot(chunk: ScheduledChunk) -> int:
    slot = chunk.seq.slot
    return -1 if slot is None else slot
