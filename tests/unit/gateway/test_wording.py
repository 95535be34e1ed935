"""A node's text beside its ids: what no engine is blamed for, and what is a lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.sampling.detokenizer import TextDecoder
from openlora_node.gateway.wording import check_text
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.gateway_world import tokenizer


@given(st.lists(st.integers(0, 279), max_size=40))
def test_no_output_of_the_engine_is_taken_for_a_lie(ids: list[int]) -> None:
    text = TextDecoder(tokenizer()).decode(ids)
    check_text(text, tokenizer().decode(ids, skip_special_tokens=True), whole=True)


@given(st.text(max_size=40), st.integers(0, 40))
def test_a_beginning_is_enough_where_it_stopped(text: str, end: int) -> None:
    check_text(text[:end], text, whole=False)


@pytest.mark.parametrize(
    ("text", "whole"), [("hell", True), ("hello you", False), ("jello", False), ("", True), ("hello\nworld!", False)]
)
def test_other_text_is_refused(text: str, whole: bool) -> None:
    with pytest.raises(OpenLoraError) as caught:
        check_text(text, "hello world", whole=whole)
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


def test_partial_characters_and_a_first_space_are_not_judged() -> None:
    check_text(" caf\ufffd", "caf", whole=True)
    check_text("naïve", " naïve", whole=True)
