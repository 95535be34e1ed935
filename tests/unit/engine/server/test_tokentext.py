"""Single tokens as bytes and text: joined, they are the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.server.tokentext import TokenText
from support.engine_tokenizer import fallback_tokenizer, tiny_tokenizer


@given(text=st.text(max_size=60))
def test_byte_level_tokens_join_to_the_text(text: str) -> None:
    tokens = TokenText(tiny_tokenizer())
    ids = tiny_tokenizer()(text, add_special_tokens=False).input_ids
    assert b"".join(map(tokens.bytes_of, ids)) == text.encode()


@given(text=st.text(max_size=60))
def test_byte_fallback_tokens_join_to_the_text_after_its_space(text: str) -> None:
    tokens = TokenText(fallback_tokenizer())
    ids = fallback_tokenizer()(text, add_special_tokens=False).input_ids
    # SentencePiece writes a space as the very character it stands for.
    expected = f" {text}" if text else ""
    assert b"".join(map(tokens.bytes_of, ids)) == expected.replace("▁", " ").encode()


@pytest.mark.parametrize("make", [tiny_tokenizer, fallback_tokenizer])
def test_every_id_has_text_and_a_key_of_its_own(make) -> None:
    tokens, vocabulary = TokenText(make()), make().get_vocab()
    for token_id in vocabulary.values():
        assert tokens.text_of(token_id) == tokens.bytes_of(token_id).decode("utf-8", "replace")
    by_bytes = {tokens.bytes_of(token_id) for token_id in vocabulary.values()}
    assert len({tokens.key_of(token_id) for token_id in vocabulary.values()}) == len(by_bytes)


def test_special_and_partial_and_unknown_tokens() -> None:
    tokens = TokenText(tiny_tokenizer())
    assert tokens.text_of(tiny_tokenizer().convert_tokens_to_ids("<|im_start|>")) == "<|im_start|>"
    first = tiny_tokenizer()("👋", add_special_tokens=False).input_ids[0]
    assert tokens.text_of(first) == "�"
    assert tokens.key_of(first) == "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokens.bytes_of(first))
    assert tokens.bytes_of(100_000) == b""
