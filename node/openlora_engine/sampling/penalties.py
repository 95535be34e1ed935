"""Which tokens a choice has used and how often, and what that takes off their logits. Bounded by the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class TokenCounts:
    """Distinct tokens of prompt and output, in order of first use, with their number in the output."""

    def __init__(self, vocab_size: int, prompt_token_ids: Iterable[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._place: dict[int, int] = {}
        self._token_ids = np.empty(16, dtype=np.int64)
        self._counts = np.empty(16, dtype=np.float32)
        for token_id in prompt_token_ids:
            self._place_of(token_id)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Distinct tokens [n]."""
        return self._token_ids[: len(self._place)]

    @property
    def counts(self) -> Floats:
        """How often each stands in the output [n]; 0 for those of the prompt alone."""
        return self._counts[: len(self._place)]

    def add(self, token_id: int) -> None:
        """Count one output token. O(1)."""
        place = self._place_of(token_id)  # may replace the arrays
        self._counts[place] += 1

    def _place_of(self, token_id: int) -> int:
        place = self._place.get(token_id)
        if place is not None:
            return place
        assert 0 <= token_id < self._vocab_size, f"token {token_id} is not in the vocabulary"
        place = self._place[token_id] = len(self._place)
        if place == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
        self._token_ids[place], self._counts[place] = token_id, 0
        return place


def penalised(logits: Floats, counts: Floats, repetition: float, frequency: float, presence: float) -> Floats:
    """New logits [n] of used tokens, by single float32 operations in this order (vLLM's definitions).

    repetition (Keskar et al., arXiv 1909.05858): positive logits are divided by it, others multiplied, for tokens of
    prompt and output. frequency times the count, then presence, are taken off tokens of the output.
    """
    if repetition != 1:
        factor = np.float32(repetition)
        with np.errstate(over="ignore"):  # to inf, which the sampler reports
            logits = np.where(logits > 0, logits / factor, logits * factor)
    if frequency:
        logits = logits - np.float32(frequency) * counts
    if presence:
        logits = logits - np.float32(presence) * (counts > 0).astype(np.float32)
    return logits
