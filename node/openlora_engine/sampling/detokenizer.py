"""Token ids to text as they come: only whole characters, special tokens left out, nothing ever taken back.

Two decoders of the `tokenizers` library cover the models that are served, and both map each token to bytes or text by
itself, so that a step costs a table look-up. Others are decoded again, a window at a time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_LONGEST_WINDOW = 32

_BYTES_OF_LEAD = {range(0xC2, 0xE0): 2, range(0xE0, 0xF0): 3, range(0xF0, 0xF5): 4}


class Detokenizer(Protocol):
    """One choice's text so far."""

    def add(self, token_id: int) -> str:
        """The text that this token made certain; unknown ids and special tokens have none."""
        ...

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character."""
        ...


class TextDecoder:
    """Makes the detokenizers of one tokenizer. Any thread; its tables are built once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast | Tokenizer) -> None:
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        self._backend: Tokenizer = backend
        self._layout = _layout_of(backend)
        self._pieces: list[bytes | str | None] = []
        if self._layout != _OTHER:
            self._pieces = _pieces_of(backend, byte_level=self._layout == _BYTE_LEVEL)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer at the start of an output."""
        if self._layout == _BYTE_LEVEL:
            return ByteLevelDetokenizer(self._pieces)
        if self._layout == _OTHER:
            return WindowDetokenizer(self._backend)
        return ByteFallbackDetokenizer(self._pieces, strips_space=self._layout == _FALLBACK_STRIP)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole output."""
        detokenizer = self.detokenizer()
        return "".join([detokenizer.add(token_id) for token_id in token_ids]) + detokenizer.flush()


class ByteLevelDetokenizer:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): tokens are bytes, their concatenation is UTF-8.

    Equals `tokenizer.decode(all, skip_special_tokens=True)` for every sequence of ids, invalid UTF-8 included.
    """

    def __init__(self, pieces: Sequence[bytes | str | None]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """See Detokenizer."""
        piece = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None
        return self._decoder.decode(piece) if isinstance(piece, bytes) else ""

    def flush(self) -> str:
        """See Detokenizer."""
        return self._decoder.decode(b"", final=True)


class ByteFallbackDetokenizer:
    """SentencePiece vocabularies (Llama 2, Mistral, Gemma): pieces of text, and byte tokens for what has no piece.

    Equals `tokenizer.decode` where a run of byte tokens is valid UTF-8, or holds no valid character. Of a run that is
    partly valid `tokenizer.decode` makes U+FFFD throughout; a stream has shown the valid characters by then and keeps
    them. An invalid byte is one U+FFFD.
    """

    def __init__(self, pieces: Sequence[bytes | str | None], *, strips_space: bool) -> None:
        self._pieces = pieces
        self._strips_space = strips_space
        self._pending = b""

    def add(self, token_id: int) -> str:
        """See Detokenizer."""
        piece = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None
        if piece is None:
            return ""
        return self._stripped(self._add_byte(piece) if isinstance(piece, bytes) else self._release() + piece)

    def flush(self) -> str:
        """See Detokenizer."""
        return self._stripped(self._release())

    def _add_byte(self, byte: bytes) -> str:
        if not _may_continue(self._pending, byte):
            return self._release() + self._add_byte(byte)
        self._pending += byte
        if len(self._pending) < _length_of(self._pending[0]):
            return ""
        try:
            text = self._pending.decode()
        except UnicodeDecodeError:
            return self._release()
        self._pending = b""
        return text

    def _release(self) -> str:
        text = REPLACEMENT * len(self._pending)
        self._pending = b""
        return text

    def _stripped(self, text: str) -> str:
        """Without the space that opens every text of this vocabulary."""
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text


class WindowDetokenizer:
    """Any other decoder: the last tokens are decoded with and without the newest, and the difference is its text.

    Exact where a token's text depends on its neighbours at most (WordPiece, Metaspace), which a window of three pieces
    shows. Text that ends in U+FFFD waits for the rest of its character, up to _LONGEST_WINDOW tokens.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._window: list[int] = []
        self._shown = 0
        """Tokens of the window whose text is out."""

    def add(self, token_id: int) -> str:
        """See Detokenizer."""
        self._window.append(token_id)
        text = self._unshown()
        if text.endswith(REPLACEMENT) and len(self._window) < _LONGEST_WINDOW:
            return ""
        if text:
            self._window = self._window[max(0, self._shown - 1) :]
            self._shown = len(self._window)
        return text

    def flush(self) -> str:
        """See Detokenizer."""
        text, self._window, self._shown = self._unshown(), [], 0
        return text

    def _unshown(self) -> str:
        before = self._backend.decode(self._window[: self._shown], skip_special_tokens=True)
        return self._backend.decode(self._window, skip_special_tokens=True)[len(before) :]


_BYTE_LEVEL, _FALLBACK, _FALLBACK_STRIP, _OTHER = "byte-level", "fallback", "fallback, strip", "other"


def _layout_of(backend: Tokenizer) -> str:
    """Which decoder the tokenizer has. `tokenizers` tells that only in a decoder's pickled form, JSON."""
    if backend.decoder is None:
        return _OTHER
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return _BYTE_LEVEL
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"]:
        return _OTHER
    if parts[0]["pattern"] != {"String": "▁"} or parts[0]["content"] != " ":
        return _OTHER
    if len(parts) == 3:
        return _FALLBACK
    return _FALLBACK_STRIP if parts[3:] == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] else _OTHER


def _pieces_of(backend: Tokenizer, *, byte_level: bool) -> list[bytes | str | None]:
    """Each id's bytes (byte-level; byte tokens of byte fallback) or text; None for special tokens and gaps."""
    convert: Callable[[str], bytes | str] = _bytes_of if byte_level else _fallback_of
    vocabulary = backend.get_vocab(with_added_tokens=True)
    pieces: list[bytes | str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token_id in vocabulary.items():
        pieces[token_id] = convert(piece)
    for token_id, token in backend.get_added_tokens_decoder().items():  # these come before the model's own
        pieces[token_id] = None if token.special else convert(token.content)
    return pieces


def _bytes_of(piece: str) -> bytes:
    """Byte-level: a piece that is not all in the alphabet (an added token) stands for itself."""
    codes = [BYTE_OF.get(character) for character in piece]
    return piece.encode() if None in codes else bytes(code for code in codes if code is not None)


def _fallback_of(piece: str) -> bytes | str:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace("▁", " ")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's character for each byte: itself where printable in Latin-1, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""GPT-2's `bytes_to_unicode`, the other way round."""


def _length_of(lead: int) -> int:
    """Bytes of the UTF-8 character that starts so; 1 also for bytes that can not start one."""
    return next((length for leads, length in _BYTES_OF_LEAD.items() if lead in leads), 1)


def _may_continue(pending: bytes, byte: bytes) -> bool:
    return not pending or 0x80 <= byte[0] < 0xC0
