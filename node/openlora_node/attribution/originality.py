"""Whose a text is when a dataset is registered: what others registered before stays theirs. Pure.

Two tests, both on normalised words and so the same for every tokenizer. A run of `RUN` words that an earlier text holds
belongs to whoever registered it first (exact repeats: Lee et al., arXiv 2107.06499). A text whose 5-grams are `NEAR`
alike to an earlier one's joins its cluster and belongs to the cluster's first contributor (MinHash: Broder 1997).
Paraphrase beyond that is not seen.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..protocol.crypto import Address
from .dataset import Sample

RUN = 50
"""Words."""
NEAR = Fraction(4, 5)
GRAM = 5
PERMUTATIONS = 128
BAND = 8
"""Rows of a band: texts that agree on one whole band are compared; at a likeness of 0.8, 95 of 100 pairs are found."""

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Piece:
    """Part of a text, [start, end) in characters, and whose it is."""

    start: int
    end: int
    owner: Address
    repeats: bool = False
    """The same dataset holds it already, in an earlier text."""


@dataclass(frozen=True)
class Verdict:
    """What a text of a new dataset came to."""

    sample: int
    """Which sample of the dataset, from 0."""
    text: int
    """Which text of the sample, from 0."""
    pieces: tuple[Piece, ...]
    near: Address | None = None
    """Whose text it nearly repeats."""

    def is_own(self, contributor: Address) -> bool:
        """Whether all of it is the contributor's."""
        return all(piece.owner == contributor for piece in self.pieces)


@dataclass
class Originals:
    """All that was registered so far, in the order of registration. One process, one order: everybody's is the same."""

    _runs: dict[int, tuple[Address, int]] = field(default_factory=dict)
    """Hash of RUN words → who had them first, and the newest dataset that holds them."""
    _bands: dict[tuple[int, bytes], list[int]] = field(default_factory=dict)
    _texts: list[tuple[frozenset[int], Address]] = field(default_factory=list)
    """5-grams of each text and its cluster's first contributor."""
    _dataset: int = 0
    """Which dataset is judged, from 1."""
    _first_text: int = 0
    """Where its texts begin in `_texts`."""

    def register(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge a dataset's texts against everything before, themselves included, and keep them."""
        self._dataset += 1
        self._first_text = len(self._texts)
        return [
            self._judge(number, place, text, sample.contributor)
            for number, sample in enumerate(samples)
            for place, text in enumerate(sample.texts)
        ]

    def _judge(self, number: int, place: int, text: str, contributor: Address) -> Verdict:
        spans, words = split_words(text)
        owners: list[tuple[Address, bool]] = [(contributor, False)] * len(words)
        for at, run in enumerate(_runs(words)):
            first, newest = self._runs.get(run, (contributor, 0))
            self._runs[run] = first, self._dataset
            if first != contributor or newest == self._dataset:
                owners[at : at + RUN] = [(first, newest == self._dataset)] * RUN
        near, repeats = self._join(words, contributor)
        if near != contributor or repeats:
            return Verdict(number, place, (Piece(0, len(text), near, repeats),), near if near != contributor else None)
        return Verdict(number, place, tuple(_pieces(text, spans, owners, contributor)))

    def _join(self, words: Words, contributor: Address) -> tuple[Address, bool]:
        """The first contributor of the text's cluster, and whether this very dataset holds a text of that cluster."""
        grams = _grams(words)
        if not grams:
            return contributor, False
        alike, repeats, candidates = None, False, set[int]()
        bands = _bands(grams)
        for band in bands:
            candidates.update(self._bands.get(band, ()))
        for other in sorted(candidates):
            known, first = self._texts[other]
            if len(grams & known) >= NEAR * len(grams | known):
                alike = alike or first
                if other >= self._first_text:
                    repeats = True
                    break
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._texts))
        self._texts.append((grams, alike or contributor))
        return alike or contributor, repeats


def attributed(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> Iterator[Sample]:
    """The samples as an index takes them: each piece under its owner, each cluster once.

    So copies push no passage past the bound on occurrences, where its first contributor would lose it too.
    """
    for verdict in verdicts:
        sample = samples[verdict.sample]
        text = sample.texts[verdict.text]
        for piece in verdict.pieces:
            if piece.repeats:
                continue
            yield Sample(piece.owner, sample.licence, (text[piece.start : piece.end],))


def split_words(text: str) -> tuple[list[tuple[int, int]], Words]:
    """Where each word of a text stands, [start, end) in characters, and its 64-bit hash after normalisation."""
    spans, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        spans.append((start, at))
    words = [_hash("".join(unicodedata.normalize("NFKC", text[a:b]).casefold().split())) for a, b in spans]
    return spans, np.array(words, np.uint64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _rolling(words: Words, count: int) -> Words:
    """A hash of each run of `count` words: an odd polynomial modulo 2^64 over hashes that are already uniform."""
    if len(words) < count:
        return np.empty(0, np.uint64)
    base, total = np.uint64(0x9E3779B97F4A7C15), np.zeros(len(words) - count + 1, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(count):
            total = total * base + words[offset : len(words) - count + 1 + offset]
    return total


def _runs(words: Words) -> list[int]:
    return [int(run) for run in _rolling(words, RUN)]


def _grams(words: Words) -> frozenset[int]:
    """The set of a text's 5-grams; a shorter text is one gram."""
    if not len(words):
        return frozenset()
    return frozenset(int(gram) for gram in _rolling(words, min(GRAM, len(words))))


_MULTIPLIERS = [np.uint64(_hash(f"multiplier {number}") | 1) for number in range(PERMUTATIONS)]
_OFFSETS = [np.uint64(_hash(f"offset {number}")) for number in range(PERMUTATIONS)]
"""Out of a hash, since numpy does not promise the same random numbers from version to version."""


def _bands(grams: frozenset[int]) -> list[tuple[int, bytes]]:
    """The MinHash signature in bands of BAND rows."""
    values = np.array(sorted(grams), np.uint64)
    with np.errstate(over="ignore"):
        signature = np.array(
            [int((values * by + plus).min()) for by, plus in zip(_MULTIPLIERS, _OFFSETS, strict=True)], np.uint64
        )
    return [(row, signature[row : row + BAND].tobytes()) for row in range(0, PERMUTATIONS, BAND)]


def _pieces(
    text: str, spans: list[tuple[int, int]], owners: list[tuple[Address, bool]], contributor: Address
) -> Iterator[Piece]:
    """Runs of words of one owner; the space after a word goes with it."""
    if not spans:
        yield Piece(0, len(text), contributor)
        return
    start = 0
    for place in range(1, len(spans) + 1):
        if place == len(spans) or owners[place] != owners[place - 1]:
            end = len(text) if place == len(spans) else spans[place][0]
            yield Piece(start, end, *owners[place - 1])
            start = end
