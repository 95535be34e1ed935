"""Token counts are what a counter gives, through every growth; penalties are vLLM's definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.sampling.penalties import TokenCounts, penalised

tokens = st.lists(st.integers(0, 99), max_size=120)


@given(prompt=tokens, output=tokens)
def test_counts_equal_a_counter(prompt: list[int], output: list[int]) -> None:
    counts = TokenCounts(100, prompt)
    for number, token_id in enumerate(output, start=1):
        counts.add(token_id)
        assert counts.counts.sum() == number
    expected = Counter(dict.fromkeys(prompt, 0)) + Counter()
    expected.update(output)
    found = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == {token_id: expected[token_id] for token_id in {*prompt, *output}}
    assert len(counts) == len(found)


def test_a_token_outside_the_vocabulary_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="vocabulary"):
        TokenCounts(100, [100])


def test_penalties_by_hand() -> None:
    logits, counts = np.array([2.0, -2.0, 0.0, 4.0], dtype=np.float32), np.array([0, 1, 2, 3], dtype=np.float32)
    assert penalised(logits, counts, 2.0, 0.0, 0.0).tolist() == [1.0, -4.0, 0.0, 2.0]
    assert penalised(logits, counts, 1.0, 0.5, 0.0).tolist() == [2.0, -2.5, -1.0, 2.5]
    assert penalised(logits, counts, 1.0, 0.0, 0.25).tolist() == [2.0, -2.25, -0.25, 3.75]
    assert penalised(logits, counts, 2.0, 0.5, 0.25).dtype == np.float32
    assert penalised(logits, counts, 1.0, 0.0, 0.0) is logits
