"""Token events merged into pieces of choices, and the tokens they add up to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..request import ChosenLogprob, FinishReason, Timings, TokenEvent
from .responses import PromptTokensDetails, Usage


@dataclass(frozen=True)
class Piece:
    """Consecutive events of one choice as one: a chunk of a stream, or the whole choice.

    `choice` numbers all choices of a response: prompt by prompt, `n` each.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[ChosenLogprob, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    num_output_tokens: int
    """The choice's tokens in all; 0 until it ended."""
    timings: Timings | None


def merge(events: Iterable[TokenEvent], prompt: int, n: int) -> list[Piece]:
    """One piece for each choice with events among these, which belong to the prompt numbered `prompt`."""
    by_choice: dict[int, list[TokenEvent]] = {}
    for event in events:
        by_choice.setdefault(prompt * n + event.index, []).append(event)
    return [_merged(choice, of_choice) for choice, of_choice in by_choice.items()]


def _merged(choice: int, events: Sequence[TokenEvent]) -> Piece:
    last = events[-1]
    return Piece(
        choice,
        "".join(event.text for event in events),
        tuple(token_id for event in events for token_id in event.token_ids),
        tuple(logprob for event in events for logprob in event.logprobs),
        last.finish_reason,
        last.stop_reason,
        last.num_output_tokens if last.finish_reason is not None else 0,
        last.timings,
    )


class Tally:
    """Adds up the usage of a response while its pieces pass."""

    def __init__(self, prompt_lengths: Sequence[int], n: int) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._n = n
        self._output: dict[int, int] = {}
        self._cached: dict[int, int] = {}

    def add(self, piece: Piece) -> None:
        """Count a piece; a choice's last one brings the engine's own count."""
        running = self._output.get(piece.choice, 0) + len(piece.token_ids)
        self._output[piece.choice] = piece.num_output_tokens if piece.finish_reason is not None else running
        # The choices of one prompt share its blocks: only the first tells what was there before.
        if piece.timings is not None and piece.choice % self._n == 0:
            self._cached[piece.choice] = piece.timings.num_cached_tokens

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        output = sum(self._output.values())
        cached = PromptTokensDetails(sum(self._cached.values()))
        return Usage(self._prompt_tokens, output, self._prompt_tokens + output, cached)
