"""A base's tokenizer.json as attribution reads it: token ids of texts, and each token's bytes as they stand in text.

Control tokens never come out of text: who writes `<|im_end|>` into a sample gets the tokens of these characters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..protocol.errors import ErrorCode, OpenLoraError

FILE = "tokenizer.json"
MAX_FILE_BYTES = 64 << 20
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenizerEncoder:
    """One tokenizer.json. Raises MALFORMED for what is none, UNSUPPORTED for one whose tokens have no bytes we know."""

    def __init__(self, data: bytes) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(data.decode())
            self._pieces = _pieces(json.loads(data), self._tokenizer.get_vocab(with_added_tokens=True))
        except OpenLoraError:
            raise
        except Exception:  # noqa: BLE001 - the tokenizers library raises bare Exception for a file that it cannot read
            raise OpenLoraError(ErrorCode.MALFORMED, f"this is no {FILE}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._digest = hashlib.sha256(data).digest()

    @classmethod
    def open(cls, folder: Path) -> TokenizerEncoder:
        """The tokenizer of a base's folder. Blocks. Raises NOT_FOUND too."""
        try:
            with (folder / FILE).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            raise OpenLoraError(ErrorCode.NOT_FOUND, f"there is no {FILE} in this folder") from None
        if len(data) > MAX_FILE_BYTES:
            raise OpenLoraError(ErrorCode.MALFORMED, f"this {FILE} is larger than any tokenizer's")
        return cls(data)

    @property
    def digest(self) -> bytes:
        """SHA-256 of tokenizer.json, as in the base's manifest."""
        return self._digest

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. Unpaired surrogates count as U+FFFD."""
        return [self._tokenizer.encode(_utf8(text), add_special_tokens=False).ids for text in texts]

    def pieces(self) -> Sequence[bytes | None]:
        """Each id's bytes as they stand in text; None for special tokens and gaps."""
        return self._pieces

    def text(self, ids: Sequence[int]) -> str:
        """What these tokens say: special tokens say nothing, what is no UTF-8 shows as U+FFFD."""
        return self.bytes(ids).decode("utf-8", "replace")

    def bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of these tokens."""
        return b"".join(self._pieces[i] or b"" for i in ids if i < len(self._pieces))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _pieces(file: dict[str, Any], vocabulary: dict[str, int]) -> tuple[bytes | None, ...]:
    added = {int(token["id"]): token for token in file.get("added_tokens", ())}
    to_bytes = _reading(file)
    pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        token = added.get(number)
        if token is None:
            pieces[number] = to_bytes(text)
        elif not token.get("special"):
            pieces[number] = text.encode()
    return tuple(pieces)


def _reading(file: dict[str, Any]) -> Callable[[str], bytes]:
    """How a token of the vocabulary is read, by what the file says of decoding."""
    kinds = {entry.get("type") for entry in (*_steps(file.get("decoder")), *_steps(file.get("pre_tokenizer")))}
    if "ByteLevel" in kinds:
        return _byte_level
    if "WordPiece" in kinds:
        return lambda text: text[2:].encode() if text.startswith("##") else f" {text}".encode()
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _metaspace
    raise OpenLoraError(ErrorCode.UNSUPPORTED, "this tokenizer's tokens cannot be read as bytes of text")


def _steps(part: Any) -> list[dict[str, Any]]:
    """A decoder or pre-tokenizer as its steps."""
    if not isinstance(part, dict):
        return []
    inner = part.get("decoders") or part.get("pretokenizers") or []
    return [part, *(step for entry in inner for step in _steps(entry))]


def _metaspace(text: str) -> bytes:
    if match := _BYTE.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace("\u2581", " ").encode()


def _byte_level(text: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[character] for character in text)


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
