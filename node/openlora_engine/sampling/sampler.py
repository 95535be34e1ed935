"""Logits to tokens for one step's rows, each by its own parameters. Knows tensors; knows no scheduler and no text.

Of each row, in this order:

    1. the row must be finite, else its choice fails and no other
    2. logit_bias, repetition, frequency and presence penalties (penalties.py)
    3. min_tokens: what would end the choice is forbidden
    4. the grammar's mask
    5. temperature, top-k, top-p, min-p, Gumbel-max (openlora_kernels/sampling.py); greedy: the largest logit
    6. log-probabilities, where asked for: of the row as the model gave it

Choosing happens on the CPU, where every path gives the same token to the bit; from another device only the rows that
need more than a maximum are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openlora_kernels.sampling import NOT_FINITE, NOTHING_ALLOWED, ROW, likeliest, sample

from ..errors import Code, EngineError
from ..request import ChosenLogprob, TokenLogprob
from .state import Edit, SamplingState

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a row gave: a token, or the error that ends its choice (token_id is then negative)."""

    token_id: int
    logprob: ChosenLogprob | None = None
    error: EngineError | None = None


class Sampler:
    """Samples a step's rows. Not thread-safe: it reuses its masks."""

    def __init__(self, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._vocab_size = vocab_size
        self._masks = np.empty((0, -(-vocab_size // 32)), dtype=np.int32)

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """One result for each row of logits [R, V] and its state.

        The states are not advanced: `accept` does that. Logits are the same afterwards. A row's result depends on that
        row and its state alone.
        """
        assert logits.shape == (len(states), self._vocab_size)
        if logits.device.type == "cpu":
            return self._on_host(logits.float(), states)
        results: list[Sampled | None] = [None] * len(states)
        plain = [row for row, state in enumerate(states) if state.is_plain]
        others = [row for row, state in enumerate(states) if not state.is_plain]
        for row, token_id in zip(plain, _largest(logits, plain), strict=True):
            results[row] = _result(token_id, states[row])
        if others:
            index = torch.tensor(others, device=logits.device)
            host = logits.index_select(0, index).float().cpu()
            for row, result in zip(others, self._on_host(host, [states[row] for row in others]), strict=True):
                results[row] = result
        return [result for result in results if result is not None]

    def _on_host(self, logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        if not states:
            return []
        table: Floats = logits.numpy()
        masks, mask_of = self._fill_masks(states)
        undo = [
            (row, *edit) for row, state in enumerate(states) if state.is_edited for edit in _apply(table[row], state)
        ]
        rows = np.array([state.row(row, mask_of[row]) for row, state in enumerate(states)], dtype=ROW)
        token_ids = sample(logits, rows, masks).tolist()
        for row, ids, values in reversed(undo):
            table[row, ids] = values
        results = [_result(token_id, state) for token_id, state in zip(token_ids, states, strict=True)]
        return _with_logprobs(logits, results, states)

    def _fill_masks(self, states: Sequence[SamplingState]) -> tuple[NDArray[np.int32], list[int]]:
        """Masks [M, ceil(V / 32)] of the constrained rows, and for each row its mask or -1."""
        constrained = [row for row, state in enumerate(states) if state.matcher is not None]
        if len(constrained) > len(self._masks):
            self._masks = np.empty((len(constrained), self._masks.shape[1]), dtype=np.int32)
        mask_of = [-1] * len(states)
        for number, row in enumerate(constrained):
            state, words = states[row], self._masks[number]
            assert state.matcher is not None
            state.matcher.fill(words)
            if state.forbids_ends:
                _forbid_ends(words, state)
            mask_of[row] = number
        return self._masks, mask_of


def _apply(logits: Floats, state: SamplingState) -> list[Edit]:
    """Edit a row in place; returns what it held, in order."""
    undo = []
    for token_ids, values in state.edits(logits):
        undo.append((token_ids.copy(), logits[token_ids]))
        logits[token_ids] = values
    return undo


def _forbid_ends(words: NDArray[np.int32], state: SamplingState) -> None:
    """Take the ends out of a mask, unless nothing else is left: a grammar that is complete ends before min_tokens."""
    kept = words.copy()
    for token_id in state.ends:
        words[token_id // 32] &= ~np.int32(np.uint32(1 << (token_id % 32)).astype(np.int32))
    if not words.any():
        words[:] = kept


def _largest(logits: Tensor, rows: Sequence[int]) -> list[int]:
    """The first largest token of each row, or NOT_FINITE, without copying a row."""
    if not rows:
        return []
    values, token_ids = logits.max(dim=-1)  # NaN counts as largest
    both = torch.stack([token_ids.double(), torch.isfinite(values).double()]).cpu()
    return [int(both[0, row]) if both[1, row] else NOT_FINITE for row in rows]


def _result(token_id: int, state: SamplingState) -> Sampled:
    if token_id >= 0:
        return Sampled(token_id)
    if token_id == NOTHING_ALLOWED:
        nothing = EngineError(Code.BAD_REQUEST, "the constraint allows no further token: change it", param="constraint")
        return Sampled(token_id, error=state.error or nothing)
    message = "the model gave numbers that are not finite for this request: check the adapter's weights"
    return Sampled(token_id, error=EngineError(Code.ENGINE_FAILED, message))


def _with_logprobs(logits: Tensor, results: list[Sampled], states: Sequence[SamplingState]) -> list[Sampled]:
    """Fill in what rows ask for. Natural logarithms, from float64 sums over the row."""
    asked = {row: state.params.logprobs for row, state in enumerate(states) if results[row].error is None}
    wanted = {row: count for row, count in asked.items() if count is not None}
    if not wanted:
        return results
    counts = np.fromiter(wanted.values(), dtype=np.int32)
    tops, totals = likeliest(logits, np.fromiter(wanted, dtype=np.int32), counts)
    table: Floats = logits.numpy()
    for row, count, top, total in zip(wanted, counts, tops, totals, strict=True):
        token_ids = [results[row].token_id, *top[:count][top[:count] >= 0].tolist()]
        values = (table[row, token_ids].astype(np.float64) - total).tolist()
        chosen, *found = (TokenLogprob(*pair) for pair in zip(token_ids, values, strict=True))
        results[row] = Sampled(chosen.token_id, ChosenLogprob(chosen, tuple(found)))
    return results
