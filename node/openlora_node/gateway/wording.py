"""A node's text held against its token ids: the ids are signed and paid, the text is what the client reads. Pure.

Engines differ in what they make of bytes that are no UTF-8 and of the space before a first word: neither is judged.
Text may end before its ids do where an engine holds a stop string back: only what ran to its length must be whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..protocol.errors import ErrorCode, OpenLoraError

Decode = Callable[[Sequence[int]], str]
"""Token ids to their text by the base's own tokenizer, special tokens left out."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
INLINE_TOKENS = 4_000
"""So many are decoded at once; more by a thread."""


def check_text(text: str, decoded: str, *, whole: bool) -> None:
    """`text` is what its ids stand for, or with `whole` false the beginning of it. Raises RECEIPT_INVALID."""
    text, decoded = _plain(text), _plain(decoded)
    if text != decoded if whole else not decoded.startswith(text):
        raise OpenLoraError(
            ErrorCode.RECEIPT_INVALID, "the node's text is not what its token ids stand for: nothing is paid for it"
        )


def _plain(text: str) -> str:
    return text.replace(REPLACEMENT, "").lstrip(" ")
