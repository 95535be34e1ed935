"""Looking at bits finds what torch's own rounding would make of a weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.adapters import finite
from openlora_engine.adapters.finite import bits_of, fits, is_number, magnitude

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LIMITS = (0x477F_EFFF, 0x477F_F000, 0x4780_0000, 0x7F7F_7FFF, 0x7F7F_8000, 0x7F80_0000, 0x7F80_0001, 0)


@given(
    dtype=st.sampled_from(DTYPES),
    storage=st.sampled_from(DTYPES),
    bits=st.one_of(st.integers(0, 0x7FFF_FFFF), st.sampled_from(LIMITS)),
    negative=st.booleans(),
)
def test_one_weight_is_judged_as_torch_rounds_it(
    dtype: torch.dtype, storage: torch.dtype, bits: int, negative: bool
) -> None:
    pattern = np.array([bits | (negative << 31)], np.uint32)
    if dtype is not torch.float32:
        pattern = np.array([pattern[0] >> 16], np.uint16)
    weight = torch.from_numpy(pattern.view(np.uint8).copy()).view(dtype)
    found = magnitude(bits_of(pattern.view(np.uint8), dtype))
    assert is_number(found, dtype) == bool(weight.isfinite().all())
    assert fits(found, dtype, storage) == bool(weight.float().to(storage).isfinite().all())


@pytest.mark.parametrize("place", [0, 6, 7, 8, 20])
def test_the_largest_is_found_wherever_it_lies(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "CHUNK", 7)
    weights = np.ones(21, np.float16)
    weights[place] = -3
    assert magnitude(bits_of(weights.view(np.uint8), torch.float16)) == int(np.float16(3).view(np.uint16))
    assert magnitude(bits_of(np.empty(0, np.uint8), torch.float16)) == 0
