"""What all responses share: the envelope around the choices, and the interface of a dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType

from .pieces import Piece
from .responses import ChoiceTimings, OpenLora, Usage


@dataclass(frozen=True)
class Envelope:
    """What every body of a response repeats, and what the client asked to be told."""

    id: str
    created: int
    model: str
    adapter: str | None
    prompts: tuple[tuple[int, ...], ...]
    n: int = 1
    logprobs: bool = False
    return_token_ids: bool = False
    return_timings: bool = False

    def ids(self, piece: Piece) -> list[int] | UnsetType:
        """A piece's token ids, where asked for."""
        return list(piece.token_ids) if self.return_token_ids else UNSET

    def prompt_ids(self, choice: int) -> list[int] | UnsetType:
        """The prompt's token ids of a choice, where asked for."""
        return list(self.prompts[choice // self.n]) if self.return_token_ids else UNSET

    def ours(self, pieces: Sequence[Piece]) -> OpenLora:
        """Our field for the choices that end with these pieces."""
        if not self.return_timings:
            return OpenLora(self.adapter)
        timed = [(piece.choice, piece.timings) for piece in pieces]
        return OpenLora(self.adapter, [ChoiceTimings.of(choice, timings) for choice, timings in timed if timings])

    def is_silent(self, piece: Piece) -> bool:
        """Whether a chunk for this piece would tell nothing."""
        told = piece.text or piece.finish_reason is not None or (self.logprobs and piece.logprobs)
        return not told and not (self.return_token_ids and piece.token_ids)


class Shape(Protocol):
    """One response in one dialect. Chunks of a choice must be made in order."""

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Struct:
        """The whole response, of one piece a choice."""
        ...

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Struct:
        """One event of the streamed response."""
        ...

    def usage_chunk(self, usage: Usage) -> Struct:
        """The event that ends a stream with its usage."""
        ...


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI sends -9999 for what cannot be chosen."""
    return max(logprob, -9999.0)
