"""A choice of a token replayed by a verifier: plain numpy, no state, no device.

A token is a function of the request's parameters and seed, the choice's index, the tokens before it, and the logits:
nothing else. openlora_kernels/philox.py and openlora_kernels/sampling.py specify it to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from openlora_kernels.sampling import min_s_of, reference

from .params import SamplingParams
from .penalties import penalised
from .state import GREEDY_BELOW


def replay(
    logits: NDArray[np.float32],
    params: SamplingParams,
    *,
    seed: int,
    index: int,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    eos_token_ids: Collection[int] = (),
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The token that follows `output_token_ids`, from the model's logits [V] at that place; they are not changed.

    `allowed` [V] is the mask of the constraint, if there is one. The result is negative where there is no token
    (NOT_FINITE, NOTHING_ALLOWED of openlora_kernels.sampling).
    """
    edited = logits.copy()
    if np.all(logits < np.inf):
        for token_id, bias in params.logit_bias.items():
            edited[token_id] += np.float32(bias)
        counts = np.bincount(np.asarray(output_token_ids, dtype=np.int64), minlength=len(logits)).astype(np.float32)
        used = counts > 0
        used[list(prompt_token_ids)] = True
        penalties = (params.frequency_penalty, params.presence_penalty)
        edited[used] = penalised(edited[used], counts[used], params.repetition_penalty, *penalties)
        if len(output_token_ids) < params.min_tokens:
            edited, allowed = _without_ends(edited, allowed, params, eos_token_ids)
    return reference(
        edited,
        seed=seed,
        step=len(output_token_ids),
        stream=index,
        temperature=0.0 if params.temperature < GREEDY_BELOW else params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_s=min_s_of(params.min_p),
        allowed=allowed,
    )


def _without_ends(
    logits: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
    params: SamplingParams,
    eos_token_ids: Collection[int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Logits and mask with what ends the choice forbidden, unless a mask allows nothing else."""
    ends = list(params.stop_token_ids) + ([] if params.ignore_eos else list(eos_token_ids))
    if allowed is None:
        logits[ends] = -np.inf
        return logits, None
    without = allowed.copy()
    without[ends] = False
    return logits, without if without.any() else allowed
