"""A tokenizer of one byte a token and datasets from short texts, for tests of tracing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from openlora_node.attribution.corpusindex import CorpusIndex, build
from openlora_node.attribution.dataset import Sample
from openlora_node.protocol.crypto import Address

VOCABULARY = 256
DATASET = hashlib.sha256(b"a dataset").digest()


class Bytes:
    """Each byte of the UTF-8 text is a token."""

    digest = hashlib.sha256(b"bytes").digest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [list(text.encode()) for text in texts]

    def pieces(self) -> list[bytes | None]:
        """The bytes themselves."""
        return [bytes([byte]) for byte in range(VOCABULARY)]


def owner(number: int) -> Address:
    """Contributor `number`."""
    return Address((number + 1).to_bytes(2, "big") * 10)


def indexed(*texts: str, owners: Sequence[int] | None = None, millibits: int = 8_000) -> CorpusIndex:
    """An index of these texts, the first by contributor 0 and so on; every token is as surprising."""
    who = owners or range(len(texts))
    samples = [Sample(owner(number), "CC0-1.0", (text,)) for number, text in zip(who, texts, strict=True)]
    return build(DATASET, samples, Bytes(), np.full(VOCABULARY, millibits, np.int32))


def ids(text: str) -> list[int]:
    """The tokens of a text."""
    return list(text.encode())
