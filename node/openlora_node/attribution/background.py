"""Text that belongs to nobody: stock phrases, what chat templates say, licence notices. Who repeats it earns nothing.

`tables/background.txt` is the same for every dataset; its digest stands in each index.json, so that a replay with
another text is refused and not merely different. Lines that begin with `#` are comments.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

import numpy as np

from .corpusindex import Encoder
from .suffixes import SuffixArray, separator_of

FILE = "background.txt"


@cache
def background_bytes() -> bytes:
    """The file."""
    return (resources.files(__package__) / "tables" / FILE).read_bytes()


def background_digest() -> bytes:
    """Its SHA-256."""
    return hashlib.sha256(background_bytes()).digest()


def background(encoder: Encoder) -> SuffixArray:
    """The phrases as this tokenizer has them, at the start of a text and after a space."""
    lines = background_bytes().decode().splitlines()
    return phrases(encoder, [line for line in lines if line.strip() and not line.startswith("#")])


def phrases(encoder: Encoder, texts: list[str]) -> SuffixArray:
    """A suffix array over texts, each as it begins a text and as it follows a space."""
    return SuffixArray.of(joined(encoder, texts))


def joined(encoder: Encoder, texts: list[str]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Token ids of these texts, each twice: as it stands, and after a space; a separator after each. uint32."""
    separator = [separator_of(np.uint32)]
    ids = encoder.encode([form for text in texts for form in (text, f" {text}")])
    return np.asarray([token for one in ids for token in (*one, *separator)], np.uint32)
