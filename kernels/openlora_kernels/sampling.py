"""One token a row: truncation, then Gumbel-max. Knows neither requests nor penalties; takes logits as they shall count.

The reference functions are the specification, exact to the bit; csrc/sampling.cpp gives the same tokens. For a row l of
float32 logits (a token that its mask forbids counts as -inf):

    m = max l. No token but NOT_FINITE if l holds a NaN or +inf, or m is -inf (NOTHING_ALLOWED where there is a mask)
    temperature 0: the first token with l = m
    s = (l - m) / temperature, two float32 operations; s = -inf never is chosen
    top-k: keep s >= the k-th largest s
    top-p: of what is left, the smallest set of largest s whose weight reaches ceil(top_p * total weight)
    min-p: keep s >= ln(min_p), rounded to float32
    token = the kept one with the largest s + gumbel (float32), the smaller id where two are equal

Tokens of equal s are kept or dropped together, so that no order among equals matters. `weights` gives integers: sums
are exact in any order. Gumbel-max draws from softmax(s) over the kept tokens (Maddison et al., arXiv 1411.0030).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .native import INT, POINTER, function, native, num_threads
from .philox import gumbel

NOT_FINITE, NOTHING_ALLOWED = -1, -2
"""Results that are no token: the logits are broken; the mask forbids everything."""

ROW = np.dtype(
    [
        ("seed", "u8"),
        ("top_p", "f8"),
        ("row", "i4"),
        ("step", "u4"),
        ("stream", "u4"),
        ("temperature", "f4"),
        ("top_k", "i4"),
        ("min_s", "f4"),
        ("mask", "i4"),
        ("unused", "i4"),
    ]
)
"""How to sample one row; csrc/sampling.cpp Row is the same layout.

`row` and `mask` are indices into the logits and the masks (mask -1: none); `step` is the number of tokens that the
choice has, `stream` the choice's index in its request. top_k 0, top_p 1 and min_s -inf (`min_s_of`) keep all.
"""

WEIGHT_BITS = 40
_LOG2_E = 1.4426950408889634
_TAYLOR = (
    *(1.0, 0.6931471805599453, 0.24022650695910072, 0.055504108664821576, 0.009618129107628477, 0.0013333558146428441),
    *(0.0001540353039338161, 1.5252733804059838e-05, 1.3215486790144305e-06, 1.0178086009239699e-07),
)
"""ln(2)^n / n!, rounded to float64."""

_sample = function("ol_sample", POINTER, *[INT] * 3, POINTER, INT, POINTER, INT, INT, POINTER, INT)
_logprobs = function("ol_logprobs", POINTER, *[INT] * 3, POINTER, POINTER, INT, INT, POINTER, POINTER, INT)

Floats = NDArray[np.float32]


def min_s_of(min_p: float) -> float:
    """The row's `min_s` for min_p in [0, 1]: s below it means a probability below min_p times the largest."""
    return float(np.float32(math.log(min_p))) if min_p > 0 else -math.inf


def sample(logits: Tensor, rows: NDArray[np.void], masks: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """One token for each of `rows` (dtype ROW, [n]): int32 [n], a token id, NOT_FINITE or NOTHING_ALLOWED.

    logits float32 [R, V] on the CPU, rows contiguous; masks int32 [M, ceil(V / 32)]: bit t % 32 of word t // 32 is set
    where token t is allowed. A row's result depends on that row alone. Raises ValueError for parameters out of range.
    """
    table = _rows_of(logits)
    if not native():
        return np.array([_reference_row(table, row, masks) for row in rows], dtype=np.int32)
    tokens = np.empty(len(rows), dtype=np.int32)
    assert rows.dtype == ROW
    assert rows.flags.c_contiguous
    assert masks is None or (masks.dtype == np.int32 and masks.flags.c_contiguous)
    mask_address, words, num_masks = (None, 0, 0) if masks is None else (masks.ctypes.data, masks.shape[1], len(masks))
    _sample(
        *(logits.data_ptr(), logits.stride(0), *logits.shape, rows.ctypes.data, len(rows)),
        *(mask_address, words, num_masks, tokens.ctypes.data, num_threads()),
    )
    return tokens


def likeliest(
    logits: Tensor, rows: NDArray[np.int32], counts: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """For row rows[i] of logits [R, V]: its counts[i] likeliest tokens, and ln(sum(e^l)): log-probability = l - that.

    Returns tokens int32 [n, max count], ordered by value, then by id, filled up with -1, and float64 [n] (NaN for a row
    that is not finite).
    """
    table = _rows_of(logits)
    tokens = np.full((len(rows), max(1, int(counts.max(initial=0)))), -1, dtype=np.int32)
    totals = np.empty(len(rows), dtype=np.float64)
    if not native():
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            best, totals[i] = reference_likeliest(table[row], int(count))
            tokens[i, : len(best)] = best
        return tokens, totals
    rows, counts = np.ascontiguousarray(rows, dtype=np.int32), np.ascontiguousarray(counts, dtype=np.int32)
    _logprobs(
        *(logits.data_ptr(), logits.stride(0), *logits.shape, rows.ctypes.data, counts.ctypes.data, len(rows)),
        *(tokens.shape[1], tokens.ctypes.data, totals.ctypes.data, num_threads()),
    )
    return tokens, totals


def reference(
    row: Floats,
    *,
    seed: int,
    step: int,
    stream: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_s: float = -math.inf,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The specification for one row: float32 [V], allowed bool [V] -> token id, NOT_FINITE or NOTHING_ALLOWED."""
    if not np.all(row < np.inf):
        return NOT_FINITE
    logits = row if allowed is None else np.where(allowed, row, np.float32(-np.inf))
    top = int(np.argmax(logits))
    if logits[top] == -np.inf:
        return NOT_FINITE if allowed is None else NOTHING_ALLOWED
    if temperature == 0:
        return top
    with np.errstate(over="ignore"):  # to -inf, which never is chosen
        s = (logits - logits[top]) / np.float32(temperature)
    kept = np.flatnonzero(s > -np.inf)
    kept = kept[_truncate(s[kept], top_k, top_p, min_s)]
    scores = s[kept] + gumbel(seed, step, stream, kept)
    return int(kept[np.argmax(scores)])


def weights(s: Floats) -> NDArray[np.uint64]:
    """floor(2^40 e^s) for s <= 0, to about 1e-11, by float64 operations whose order is part of the specification."""
    y = np.maximum(s.astype(np.float64) * _LOG2_E, -64.0)
    n = np.rint(y)
    f = y - n
    p = np.full_like(f, _TAYLOR[-1])
    for coefficient in _TAYLOR[-2::-1]:
        p = p * f + coefficient
    value = np.floor(np.ldexp(p, n.astype(np.int32) + WEIGHT_BITS))
    return np.where(y > -(WEIGHT_BITS + 2), value, 0.0).astype(np.uint64)


def reference_likeliest(row: Floats, count: int) -> tuple[NDArray[np.int32], float]:
    """What `likeliest` gives for one row."""
    most = row.max()
    if not np.isfinite(most):
        return np.empty(0, dtype=np.int32), math.nan
    s = row - most
    total = float(most) + math.log(float(weights(s).sum()) * 2.0**-WEIGHT_BITS)
    finite = np.flatnonzero(s > -np.inf)
    if 0 < count < len(finite):
        finite = finite[s[finite] >= np.partition(s[finite], -count)[-count]]
    order = np.lexsort((finite, -s[finite]))
    return finite[order[:count]].astype(np.int32), total


def _truncate(s: Floats, top_k: int, top_p: float, min_s: float) -> NDArray[np.bool_]:
    """Which of the possible tokens [n] are kept."""
    least = np.float32(-np.inf)
    if 0 < top_k < len(s):
        least = np.partition(s, -top_k)[-top_k]
    if top_p < 1:
        values = np.sort(s[s >= least])[::-1]
        reached = np.cumsum(weights(values))
        need = min(int(reached[-1]), math.ceil(top_p * float(reached[-1])))
        least = values[np.searchsorted(reached, need)]
    return s >= max(least, np.float32(min_s))


def _reference_row(table: Floats, row: np.void, masks: NDArray[np.int32] | None) -> int:
    allowed = None
    if row["mask"] >= 0:
        assert masks is not None
        bits = np.unpackbits(masks[row["mask"]].astype("<i4").view(np.uint8), bitorder="little")
        allowed = bits[: table.shape[1]].astype(bool)
    return reference(
        table[row["row"]],
        seed=int(row["seed"]),
        step=int(row["step"]),
        stream=int(row["stream"]),
        temperature=float(row["temperature"]),
        top_k=int(row["top_k"]),
        top_p=float(row["top_p"]),
        min_s=float(row["min_s"]),
        allowed=allowed,
    )


def _rows_of(logits: Tensor) -> Floats:
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be float32 [rows, vocabulary] on the CPU, they are {logits.dtype}")
    table: Floats = logits.numpy()
    return table
