"""The noise of sampling: Gumbel variables as a pure function of seed, step, stream and token. Knows no logit.

This file is the specification; csrc/sampling.cpp gives the same bits. Plain numpy, so that a verifier needs no torch.

    block  = Philox4x32-10(counter (token div 4, step, stream, DOMAIN), key (seed mod 2^32, seed div 2^32))
    u      = (block[token mod 4] div 2^8 + 1/2) / 2^24          in float64, exact
    gumbel = round_half_even(-ln(-ln u) * 2^18) / 2^18          in float64; exact in float32

Rounding to 2^-18 makes the noise the same on every machine: over all 2^24 values of u, none of -ln(-ln u) lies within
1,000 units in the last place of a rounding boundary, so no logarithm's error reaches it (a test goes through them all).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DOMAIN = 0x4F4C5331
"""Sets these counters apart from any other use of the same seed: "OLS1"."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), words in uint64 arrays.

    The counter's four arrays broadcast against each other; so do the four results.
    """
    x0, x1, x2, x3 = counter
    for round_ in range(_ROUNDS):
        key0, key1 = (np.uint64((start + round_ * step) & 0xFFFFFFFF) for start, step in zip(key, _WEYL, strict=True))
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1 = (product1 >> _HALF) ^ x1 ^ key0, product1 & _LOW
        x2, x3 = (product0 >> _HALF) ^ x3 ^ key1, product0 & _LOW
    return x0, x1, x2, x3


def gumbel_of_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The Gumbel variable of a word's upper 24 bits, any shape."""
    u = (bits.astype(np.float64) + 0.5) * 2.0**-24
    rounded: NDArray[np.float64] = np.rint(-np.log(-np.log(u)) * 2.0**18) * 2.0**-18
    return rounded.astype(np.float32)


def gumbel(seed: int, step: int, stream: int, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Noise of the tokens [n], float32 [n]. seed is taken modulo 2^64; 0 <= step, stream < 2^32."""
    token = token_ids.astype(np.uint64)
    first = token >> np.uint64(2)
    low, high = int(first.min(initial=0)), int(first.max(initial=0))
    if high - low < len(token):  # a dense range: one block of four words serves four tokens
        counters = np.arange(low, high + 1, dtype=np.uint64)
        rows = (first - np.uint64(low)).astype(np.intp)
    else:
        counters, rows = first, np.arange(len(token))
    words = philox4x32((counters, np.uint64(step), np.uint64(stream), np.uint64(DOMAIN)), split_seed(seed))  # type: ignore[arg-type]
    table = np.stack(np.broadcast_arrays(*words), axis=1)
    chosen: NDArray[np.uint64] = table[rows, (token & np.uint64(3)).astype(np.intp)]
    return gumbel_of_bits((chosen >> np.uint64(8)).astype(np.uint32))


def split_seed(seed: int) -> tuple[int, int]:
    """The generator's key: the seed modulo 2^64 in two words, low one first."""
    return seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
