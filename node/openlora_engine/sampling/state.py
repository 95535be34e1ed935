"""What one choice carries from step to step for its sampling: parameters, seed, token counts, grammar. Knows no tensor.

It depends on the prompt and the output tokens alone, so that preemption and recomputation do not touch it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from openlora_kernels.sampling import min_s_of

from ..errors import EngineError
from .constraints import Grammar
from .params import SamplingParams
from .penalties import TokenCounts, penalised

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy, as in vLLM: a float32 division by less would overflow."""

Edit = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids, and their logits."""


class SamplingState:
    """One choice's sampling. Made at admission; `accept` follows each output token."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        seed: int,
        index: int,
        vocab_size: int,
        prompt_token_ids: Sequence[int] = (),
        eos_token_ids: Collection[int] = (),
        grammar: Grammar | None = None,
    ) -> None:
        """`seed` is the request's (any 64-bit integer), `index` the choice's; grammar that of `params.constraint`."""
        self.params = params
        self.step = 0
        """Output tokens so far."""
        self.matcher = grammar.matcher() if grammar is not None else None
        greedy = params.temperature < GREEDY_BELOW
        self.temperature = 0.0 if greedy else params.temperature
        self._seed = seed & (1 << 64) - 1
        self._index = index
        self._top_k = min(params.top_k, vocab_size)
        self._min_s = min_s_of(params.min_p)
        self._bias = _bias_of(params)
        used = params.repetition_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)
        prompt = prompt_token_ids if params.repetition_penalty != 1 else ()
        self._counts = TokenCounts(vocab_size, prompt) if used else None
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))
        self._ends = np.array(sorted(ends), dtype=np.int64)

    @property
    def is_plain(self) -> bool:
        """Whether the next token is the largest logit and nothing else is asked."""
        special = self.is_edited or self.matcher is not None or self.params.logprobs is not None
        return self.temperature == 0 and not special

    @property
    def is_edited(self) -> bool:
        """Whether logits change before they are truncated."""
        return self._bias is not None or self._counts is not None or self.forbids_ends

    @property
    def forbids_ends(self) -> bool:
        """Whether the output is still shorter than min_tokens, and what would end it is not to be drawn."""
        return self.step < self.params.min_tokens and len(self._ends) > 0

    @property
    def ends(self) -> NDArray[np.int64]:
        """The token ids that end the choice."""
        return self._ends

    @property
    def ended(self) -> bool:
        """Whether the grammar is complete and can not go on."""
        return self.matcher is not None and self.matcher.ended

    @property
    def error(self) -> EngineError | None:
        """Why the grammar can not go on."""
        return self.matcher.error if self.matcher is not None else None

    def row(self, row: int, mask: int) -> tuple[int, float, int, int, int, float, int, float, int, int]:
        """The kernel's ROW for logits `row` and mask `mask` (-1: none)."""
        params = self.params
        place = (row, self.step, self._index)
        return (self._seed, params.top_p, *place, self.temperature, self._top_k, self._min_s, mask, 0)

    def edits(self, logits: NDArray[np.float32]) -> Iterator[Edit]:
        """The edits of a row [V] before masks, in order; each must be written before the next is asked for."""
        if self._bias is not None:
            token_ids, bias = self._bias
            yield token_ids, logits[token_ids] + bias
        if self._counts is not None and len(self._counts):
            params, token_ids = self.params, self._counts.token_ids
            penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
            yield token_ids, penalised(logits[token_ids], self._counts.counts, *penalties)
        if self.forbids_ends and self.matcher is None:
            held = logits[self._ends]
            yield self._ends, np.where(held < np.inf, np.float32(-np.inf), held)  # what is broken stays visible

    def accept(self, token_id: int) -> None:
        """Go on to the next step with this output token."""
        self.step += 1
        if self._counts is not None:
            self._counts.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)


def _bias_of(params: SamplingParams) -> Edit | None:
    if not params.logit_bias:
        return None
    token_ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64, count=len(params.logit_bias))
    return token_ids, np.fromiter(params.logit_bias.values(), dtype=np.float32, count=len(params.logit_bias))
