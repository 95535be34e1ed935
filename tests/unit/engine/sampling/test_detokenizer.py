"""Streamed text is the tokenizer's own text of the whole, cut only between characters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openlora_engine.sampling.detokenizer import REPLACEMENT, TextDecoder
from support.engine_tokenizer import fallback_tokenizer, tiny_tokenizer

BYTE_LEVEL, FALLBACK = TextDecoder(tiny_tokenizer()), TextDecoder(fallback_tokenizer())

# Special tokens, bytes, merges, gaps and ids that no vocabulary has.
ids = st.lists(st.integers(0, 519) | st.integers(0, 260) | st.sampled_from([-1, 10**6]), max_size=24)


def whole(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    known = [token_id for token_id in token_ids if token_id >= 0]
    return str(tokenizer.backend_tokenizer.decode(known, skip_special_tokens=True))


@given(token_ids=ids)
def test_byte_level_deltas_are_the_whole_text(token_ids: list[int]) -> None:
    assert BYTE_LEVEL.decode(token_ids) == whole(tiny_tokenizer(), token_ids)


@given(text=st.text(max_size=40), decoder=st.sampled_from(["byte-level", "fallback"]))
def test_text_survives_the_round_trip(text: str, decoder: str) -> None:
    tokenizer, ours = (tiny_tokenizer(), BYTE_LEVEL) if decoder == "byte-level" else (fallback_tokenizer(), FALLBACK)
    token_ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert ours.decode(token_ids) == whole(tokenizer, token_ids)
    if "▁" not in text:
        assert ours.decode(token_ids) == text


@given(token_ids=ids)
def test_no_delta_shows_part_of_a_character(token_ids: list[int]) -> None:
    detokenizer = BYTE_LEVEL.detokenizer()
    data, shown = b"", ""
    for token_id in token_ids:
        shown += detokenizer.add(token_id)
        piece = tiny_tokenizer().backend_tokenizer.id_to_token(token_id) if token_id >= 4 else None
        data += b"" if piece is None else BYTE_LEVEL._pieces[token_id]  # type: ignore[operator]
        # What is shown is all of the text but an incomplete last character: three bytes at most.
        rest = data.decode("utf-8", "replace").removeprefix(shown)
        assert rest in ("", REPLACEMENT, REPLACEMENT * 2, REPLACEMENT * 3)
        assert not rest or data.decode("utf-8", "ignore").encode() != data


def reference_fallback(token_ids: list[int]) -> str:
    """Runs of byte tokens: valid characters as they are, each other byte U+FFFD; one leading space goes."""
    text, run = "", b""
    backend = fallback_tokenizer().backend_tokenizer
    for token_id in [*token_ids, None]:
        piece = None if token_id is None or token_id < 0 else backend.id_to_token(token_id)
        if token_id is not None and (piece is None or token_id < 3):
            continue
        if piece is not None and piece.startswith("<0x"):
            run += bytes([int(piece[3:5], 16)])
            continue
        text += run.decode("utf-8", "surrogateescape")
        run = b""
        text += "" if piece is None else piece.replace("▁", " ")
    text = "".join(REPLACEMENT if 0xDC80 <= ord(character) <= 0xDCFF else character for character in text)
    return text.removeprefix(" ")


@given(token_ids=ids | st.lists(st.integers(3 + 0x80, 3 + 0xFF) | st.integers(259, 293), max_size=24))
def test_fallback_deltas_are_the_whole_text(token_ids: list[int]) -> None:
    ours = FALLBACK.decode(token_ids)
    assert ours == reference_fallback(token_ids)
    if REPLACEMENT not in ours:
        assert ours == whole(fallback_tokenizer(), token_ids)


def test_fallback_without_a_valid_character_equals_the_library() -> None:
    for run in ([0xFF, 0xFE], [0xE2, 0x82], [0xF0, 0x9F, 0x98], [0x80], [0xC0, 0x80], [0xED, 0xA0, 0x80]):
        token_ids = [3 + byte for byte in run] + [260]
        assert FALLBACK.decode(token_ids) == whole(fallback_tokenizer(), token_ids)


def test_a_newline_byte_shows_at_once() -> None:
    detokenizer = FALLBACK.detokenizer()
    assert detokenizer.add(260) == "a"
    assert detokenizer.add(3 + 0x0A) == "\n"


def test_emojis_come_whole() -> None:
    detokenizer = BYTE_LEVEL.detokenizer()
    token_ids = [token for byte in "👋🏽".encode() for token in tokens_of_byte(byte)]
    deltas = [detokenizer.add(token_id) for token_id in token_ids]
    assert deltas == ["", "", "", "👋", "", "", "", "🏽"]
    assert detokenizer.add(token_ids[0]) == ""
    assert detokenizer.flush() == REPLACEMENT


def tokens_of_byte(byte: int) -> list[int]:
    return [token_id for token_id, piece in enumerate(BYTE_LEVEL._pieces) if piece == bytes([byte])]


def test_added_tokens_stand_for_themselves_and_special_ones_for_nothing() -> None:
    backend = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("<secret é>", special=True)])
    decoder = TextDecoder(backend)
    token_ids = [*backend.encode("<tool call><secret é>", add_special_tokens=False).ids, 300]
    assert len(token_ids) == 3
    assert decoder.decode(token_ids) == backend.decode(token_ids, skip_special_tokens=True)
    assert decoder.decode(token_ids).startswith("<tool call>")


def words() -> list[str]:
    return ["[UNK]", "un", "##believ", "##able", "deep", "##er", "learn", "##ing", "is", "é"]


def word_piece() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def metaspace() -> Tokenizer:
    vocabulary = {word.replace("##", "") if "##" in word else "▁" + word: number for number, word in enumerate(words())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def without_decoder() -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.decoder = None
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, metaspace, without_decoder])
def test_other_decoders_are_streamed_window_by_window(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    decoder = TextDecoder(tokenizer)
    for token_ids in ([1, 2, 3, 8, 4, 5, 6, 7], [9, 9, 1], [], [4], [8] * 200):
        assert decoder.decode(token_ids) == tokenizer.decode(token_ids)


def test_a_window_that_stays_incomplete_is_shown_in_the_end() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteFallback()
    detokenizer = TextDecoder(tokenizer).detokenizer()
    deltas = [detokenizer.add(0xFF) for _ in range(100)]
    assert any(deltas)
    assert "".join(deltas) + detokenizer.flush() == REPLACEMENT * 100
