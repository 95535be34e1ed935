"""The noise is Philox4x32-10's published words, and the same float32 on every machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_kernels import philox

KNOWN_ANSWERS = [  # Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    arrays = tuple(np.array([word], dtype=np.uint64) for word in words(counter))
    low, high = words(key)
    assert [int(word[0]) for word in philox.philox4x32(arrays, (low, high))] == words(result)  # type: ignore[arg-type]


def plain_gumbel(seed: int, step: int, stream: int, token: int) -> float:
    """From the paper, with Python's integers."""
    x = [token // 4, step, stream, philox.DOMAIN]
    keys = [seed % 2**32, seed // 2**32 % 2**32]
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [second // 2**32 ^ x[1] ^ keys[0], second % 2**32, first // 2**32 ^ x[3] ^ keys[1], first % 2**32]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    u = (x[token % 4] // 256 + 0.5) / 2**24
    return round(-math.log(-math.log(u)) * 2**18) / 2**18


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    tokens=st.lists(st.integers(0, 2**20) | st.integers(0, 40), max_size=30),
)
def test_noise_is_a_function_of_seed_step_stream_and_token(
    seed: int, step: int, stream: int, tokens: list[int]
) -> None:
    noise = philox.gumbel(seed, step, stream, np.array(tokens, dtype=np.int64))
    assert noise.dtype == np.float32
    assert noise.tolist() == [plain_gumbel(seed, step, stream, token) for token in tokens]


@pytest.mark.slow
def test_no_logarithm_of_any_machine_can_change_the_noise() -> None:
    """Every -ln(-ln u) is 1,000 ulp or more away from where its rounding would change; a libm errs by a few."""
    bits = np.arange(2**24, dtype=np.uint32)
    noise = -np.log(-np.log((bits + 0.5) * 2.0**-24))
    scaled = noise * 2.0**18
    distance = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) * 2.0**-18
    assert (distance / ((1 + np.abs(noise)) * 2.0**-52)).min() > 1_000
    assert np.array_equal(philox.gumbel_of_bits(bits).astype(np.float64), np.rint(scaled) / 2**18)


@pytest.mark.slow
def test_the_native_bound_lies_above_the_noise() -> None:
    """csrc/sampling.cpp gumbel_bound, operation for operation, over all its arguments."""
    bits = np.arange(2**24, dtype=np.int64)
    log2 = (2**25 - 1 - 2 * bits).astype(np.float32).view(np.int32) - 0x3F800000
    ln2 = 0.6931471805599453
    bound = np.float32(25 * ln2 + 1e-4) - log2.astype(np.float32) * np.float32(ln2 * 2.0**-23)
    assert (bound - philox.gumbel_of_bits(bits.astype(np.uint32)) > 5e-5).all()
