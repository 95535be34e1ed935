"""Log-probabilities of a choice, merged and split: nothing is lost, every part is an object of its own tokens."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.openai import merge_logprobs, split_logprobs
from openlora_node.protocol.errors import ProtocolError


@given(tokens=st.integers(1, 60), width=st.integers(0, 40), most=st.integers(20, 2_000))
def test_what_is_split_merges_to_the_same(tokens: int, width: int, most: int) -> None:
    whole: dict[str, Any] = {
        "tokens": [f"t{n}" + "x" * width for n in range(tokens)],
        "token_logprobs": [-n / 4 for n in range(tokens)],
        "refusal": None,
    }
    parts = split_logprobs(msgspec.json.encode(whole), tokens, most)
    assert sum(count for count, _ in parts) == tokens
    assert all(len(part) <= most or count == 1 for count, part in parts)
    assert all(len(msgspec.json.decode(part)["tokens"]) == count for count, part in parts)
    assert msgspec.json.decode(merge_logprobs([part for _, part in parts])) == whole


def test_nothing_to_split_stays_as_it_is() -> None:
    assert split_logprobs(b"", 500, 10) == [(500, b"")]
    assert split_logprobs(b"x" * 100, 1, 10) == [(1, b"x" * 100)]
    with pytest.raises(ProtocolError):
        split_logprobs(b"x" * 100, 2, 10)
