"""What one token looks like by itself, as log-probabilities show it: its exact bytes, and text where they are text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from ..sampling.detokenizer import BYTE_OF
from .backend import Tokenizer


class TokenText:
    """Token id to bytes, for byte-level (GPT-2, Llama 3), byte-fallback (Llama 2) and plain vocabularies."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._kinds = set(_decoder_kinds(self._backend.decoder))

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes: joined over a text's tokens they are the text in UTF-8. Unknown ids have none."""
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return str(piece).encode()
        if "ByteLevel" in self._kinds:
            return bytes(BYTE_OF[character] for character in piece if character in BYTE_OF)
        if "ByteFallback" in self._kinds and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return str(piece).replace("▁", " ").encode()

    def text_of(self, token_id: int) -> str:
        """The token's text; bytes that are no UTF-8 by themselves show as U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def key_of(self, token_id: int) -> str:
        """The token's text, different for different bytes: OpenAI's `bytes:\\xe2\\x80` where they are no UTF-8."""
        raw = self.bytes_of(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._backend.get_added_tokens_decoder())


def _decoder_kinds(decoder: Any) -> Iterable[str]:
    """The types in a decoder and its parts. A `tokenizers` decoder tells them only in its pickled form, JSON."""
    stack = [json.loads(decoder.__getstate__())] if decoder is not None else []
    while stack:
        node = stack.pop()
        yield node["type"]
        stack.extend(node.get("decoders", ()))
