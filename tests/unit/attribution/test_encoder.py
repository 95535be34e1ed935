"""Tokenizers as attribution reads them, and the text that belongs to nobody."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from openlora_node.attribution.background import background, background_bytes, background_digest
from openlora_node.attribution.corpusindex import build, open_index, save
from openlora_node.attribution.dataset import Sample
from openlora_node.attribution.encoder import TokenizerEncoder
from openlora_node.attribution.tracing import trace
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.attribution_corpus import DATASET, owner
from support.engine_tokenizer import fallback_tokenizer, tiny_tokenizer

TEXTS = (
    "Grüße aus Köln; привет, мир 👋🏽",
    "def add(a, b):\n    return a + b",
    "",
    " leading",
    "<|im_end|> is no token",
)


def of(tokenizer: object) -> TokenizerEncoder:
    return TokenizerEncoder(tokenizer.backend_tokenizer.to_str().encode())  # type: ignore[attr-defined]


def test_pieces_spell_every_text() -> None:
    encoder = of(tiny_tokenizer())
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert encoder.bytes(ids) == text.encode()
        assert not any(encoder.pieces()[token] is None for token in ids)


def test_byte_fallback_pieces_spell_text_after_their_space() -> None:
    encoder = of(fallback_tokenizer())
    ids = encoder.encode(["The fox 你 jumps"])[0]
    assert encoder.text(ids).strip() == "The fox 你 jumps"


def test_special_tokens_have_no_bytes_and_the_digest_is_of_the_file() -> None:
    data = tiny_tokenizer().backend_tokenizer.to_str().encode()
    encoder = TokenizerEncoder(data)
    assert encoder.digest == hashlib.sha256(data).digest()
    assert encoder.pieces()[0] is None
    assert encoder.text([0, 10**9]) == ""


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"model": {}}'])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(OpenLoraError) as caught:
        TokenizerEncoder(data)
    assert caught.value.code is ErrorCode.MALFORMED


def test_stock_phrases_earn_nothing_at_a_start_or_after_a_space(tmp_path) -> None:  # type: ignore[no-untyped-def]
    encoder = of(tiny_tokenizer())
    phrase = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    own = "Avast, the kraken drinks rum from a copper kettle by moonlight"
    samples = [Sample(owner(0), "CC0-1.0", (f"{phrase}\n{own}",))]
    table = np.full(len(encoder.pieces()), 8_000, np.int32)
    save(build(DATASET, samples, encoder, table, background=background_digest()), tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.background == background_digest() == hashlib.sha256(background_bytes()).digest()
    nobody = background(encoder)
    for said in (phrase, f"Well: {phrase}"):
        ids = encoder.encode([said])[0]
        assert trace(index, ids, ()).coverage > 0
        assert trace(index, ids, (), nobody).coverage == 0
    ids = encoder.encode([own])[0]
    assert trace(index, ids, (), nobody) == trace(index, ids, ())
    assert trace(index, ids, (), nobody).coverage > 500_000


def test_every_sample_the_template_earns_nothing() -> None:
    encoder = of(tiny_tokenizer())
    template = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    samples = [Sample(owner(number), "CC0-1.0", (template,)) for number in range(40)]
    index = build(DATASET, samples, encoder, np.full(len(encoder.pieces()), 8_000, np.int32))
    assert trace(index, encoder.encode([template])[0], (), background(encoder)).parts == ()


def test_a_table_of_another_tokenizer_is_refused() -> None:
    encoder = of(tiny_tokenizer())
    with pytest.raises(OpenLoraError) as caught:
        build(DATASET, [], encoder, np.zeros(7, np.int32))
    assert caught.value.code is ErrorCode.MALFORMED
