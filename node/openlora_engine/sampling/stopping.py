"""When a choice is over by its tokens: end of sequence, stop tokens, lengths. Knows no text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..request import FinishReason
from .params import SamplingParams


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a choice ended; `stop_reason` is the stop string or token id that matched (None for end of sequence)."""

    reason: FinishReason
    stop_reason: str | int | None = None


END_OF_SEQUENCE = Finish(FinishReason.STOP)
LENGTH = Finish(FinishReason.LENGTH)


class StopChecker:
    """The rules of one request; its choices share them."""

    def __init__(
        self, params: SamplingParams, *, eos_token_ids: Collection[int], num_prompt_tokens: int, max_model_len: int
    ) -> None:
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._min_tokens = params.min_tokens
        self.max_tokens = max(0, min(params.max_tokens, max_model_len - num_prompt_tokens))
        """Output tokens at which the choice ends, whatever they are."""

    def may_stop(self, num_output_tokens: int) -> bool:
        """Whether an output of so many tokens may end before max_tokens."""
        return num_output_tokens >= self._min_tokens

    def after(self, token_id: int, num_output_tokens: int) -> Finish | None:
        """Whether the output ends with this token, its last of `num_output_tokens`, as a stop."""
        if not self.may_stop(num_output_tokens):
            return None
        if token_id in self._stop_token_ids:
            return Finish(FinishReason.STOP, token_id)
        return END_OF_SEQUENCE if token_id in self._eos_token_ids else None

    def at_length(self, num_output_tokens: int) -> bool:
        """Whether the output is as long as it may be."""
        return num_output_tokens >= self.max_tokens
