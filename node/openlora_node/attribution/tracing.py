"""Which data a response repeats: algorithm 1 of docs/attribution.md. Integers only, so that anyone replays it.

It takes token ids and an index, and gives credited spans, a credit a token and each owner's part. It reads no file and
knows no contract. Inspired by OLMoTrace (arXiv 2504.07096): whole-word maximal spans, ranked by unigram surprisal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .suffixes import WINDOW, Ids, Positions, SuffixArray

ALGORITHM = 1
MIN_SPAN = 6
"""Tokens."""
MAX_OCCURRENCES = 1024
BETA_MILLIBITS = 24_000
"""How much less likely than chance a span must be, beside the number of places where it could have been found."""
FULL_CREDIT_MILLIBITS = 64_000
"""Surprisal above the threshold that earns a token's whole credit."""
PPM = 1_000_000


class Index(Protocol):
    """What tracing needs of a dataset's index."""

    @property
    def suffixes(self) -> SuffixArray:
        """The dataset's tokens."""
        ...

    @property
    def surprisal(self) -> NDArray[np.int32]:
        """Millibits by token id, none below 0."""
        ...

    @property
    def begins_word(self) -> NDArray[np.bool_]:
        """By token id: whether the token begins a word."""
        ...

    def document_at(self, positions: Positions) -> Positions:
        """The document that holds each token position."""
        ...

    def owner_of(self, documents: Positions) -> Positions:
        """The canonical owner of each document, a place in the index's list of owners."""
        ...


@dataclass(frozen=True)
class Span:
    """A credited span: tokens [start, end) of the response, and the earliest document that holds it."""

    start: int
    end: int
    surprisal: int
    """Millibits."""
    occurrences: int
    document: int
    owner: int


@dataclass(frozen=True)
class Trace:
    """What one dataset has in one response. Parts are of 1,000,000."""

    length: int
    """Tokens of the response."""
    spans: tuple[Span, ...]
    coverage: int
    """Mean credit of a token."""
    parts: tuple[tuple[int, int], ...]
    """(owner, part of what is credited), ascending by owner; they sum to 1,000,000, or there are none."""


def trace(
    index: Index, output: Sequence[int], prompt: Sequence[int] | Ids, background: SuffixArray | None = None
) -> Trace:
    """Trace a response. `background`: text that belongs to nobody. Token ids that the tokenizer lacks match nothing."""
    tokens = np.asarray(output, np.uint32)
    if not len(tokens) or not len(index.suffixes):
        return Trace(len(tokens), (), 0, ())
    starts, ends = _maximal_spans(index, tokens)
    sums = np.concatenate([[0], np.cumsum(_by_token(index.surprisal, tokens, 0), dtype=np.int64)])
    surprisal = sums[ends] - sums[starts]
    threshold = 1000 * (_bits(len(index.suffixes)) + _bits(len(tokens))) + BETA_MILLIBITS
    kept = (ends - starts >= MIN_SPAN) & (surprisal >= threshold)
    starts, ends, surprisal = starts[kept], ends[kept], surprisal[kept]
    for elsewhere in (SuffixArray.of(np.asarray(prompt, np.uint32)), background):
        if elsewhere is not None and len(starts):
            own = ~elsewhere.contains(tokens, starts, ends - starts)
            starts, ends, surprisal = starts[own], ends[own], surprisal[own]
    low, high = index.suffixes.ranges(tokens, starts, ends - starts)
    rare = high - low <= MAX_OCCURRENCES
    starts, ends, surprisal, low, high = (values[rare] for values in (starts, ends, surprisal, low, high))
    documents = index.document_at(_earliest(index.suffixes, low, high))
    credit, document = _credit_tokens(len(tokens), starts, ends, surprisal - threshold, documents)
    for start, end, earliest in zip(*_windows(index, tokens, starts, ends, sums, threshold), strict=True):
        document[start:end] = np.minimum(document[start:end], earliest)
    columns = (starts, ends, surprisal, high - low, documents, index.owner_of(documents))
    spans = tuple(Span(*(int(value) for value in row)) for row in zip(*columns, strict=True))
    credited = credit > 0
    owners = index.owner_of(document[credited])
    return Trace(len(tokens), spans, int(credit.sum()) // len(tokens), _parts(credit[credited], owners))


def _maximal_spans(index: Index, tokens: Ids) -> tuple[Positions, Positions]:
    """Longest matches that begin and end with a word and reach further than any before them."""
    length = len(tokens)
    begins = _by_token(index.begins_word, tokens, np.True_)
    boundary = np.append(begins, True)
    boundary[0] = True
    last_boundary = np.maximum.accumulate(np.where(boundary, np.arange(length + 1), 0))
    starts = np.flatnonzero(boundary[:-1])
    ends = last_boundary[starts + index.suffixes.longest(tokens, starts)]
    further = ends > np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    worth = further & (ends > starts)
    return starts[worth], ends[worth]


def _by_token(table: NDArray[np.generic], tokens: Ids, missing: object) -> NDArray[np.generic]:
    """The table's entry of each token; ids beyond it get `missing`."""
    known = tokens < len(table)
    return np.where(known, table[np.where(known, tokens, 0)], missing)  # type: ignore[call-overload, no-any-return]


def _bits(count: int) -> int:
    """log2, rounded up."""
    return max(0, count - 1).bit_length()


def _earliest(suffixes: SuffixArray, low: Positions, high: Positions) -> Positions:
    """The first token position of each range: documents stand in the order of their registration."""
    if not len(low):
        return np.empty(0, np.int64)
    counts = high - low
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.arange(int(counts.sum())) - np.repeat(offsets, counts) + np.repeat(low, counts)
    return np.minimum.reduceat(suffixes.order[places].astype(np.int64), offsets)


def _credit_tokens(
    length: int, starts: Positions, ends: Positions, above: Positions, documents: Positions
) -> tuple[Positions, Positions]:
    """Each token's credit (parts per million) and its document: those of the best span over it.

    The best is the one of the highest surprisal, of equals the first.
    """
    credit, document = np.zeros(length, np.int64), np.zeros(length, np.int64)
    amounts = np.minimum(PPM, above * PPM // FULL_CREDIT_MILLIBITS)
    for place in np.lexsort((-starts, above)):  # the best is written last
        credit[starts[place] : ends[place]] = amounts[place]
        document[starts[place] : ends[place]] = documents[place]
    return credit, document


def _windows(
    index: Index, tokens: Ids, starts: Positions, ends: Positions, sums: Positions, threshold: int
) -> tuple[Positions, Positions, Positions]:
    """The shortest parts of the spans that would be kept by themselves, each with the earliest document that holds it.

    They decide whose a token is. Spans alone would not do: who copies a text and puts a word before it holds the longer
    match, and would take the whole.
    """
    limit = np.zeros(len(tokens), np.int64)
    limit[starts] = ends
    limit = np.maximum.accumulate(limit)
    begins = np.flatnonzero(limit > np.arange(len(tokens)))
    stops = np.maximum(begins + MIN_SPAN, np.searchsorted(sums, sums[begins] + threshold))
    inside = (stops <= limit[begins]) & (stops - begins <= WINDOW)
    begins, stops = begins[inside], stops[inside]
    low, high = index.suffixes.ranges(tokens, begins, stops - begins)
    rare = high - low <= MAX_OCCURRENCES
    documents = index.document_at(_earliest(index.suffixes, low[rare], high[rare]))
    return begins[rare], stops[rare], documents


def _parts(credit: Positions, owner: Positions) -> tuple[tuple[int, int], ...]:
    """Largest remainder: each owner's part of the credited whole; ties go to the lower owner."""
    whole = int(credit.sum())
    if not whole:
        return ()
    sums = {int(who): int(credit[owner == who].sum()) for who in np.unique(owner)}
    parts = {who: amount * PPM // whole for who, amount in sums.items()}
    for who in sorted(sums, key=lambda who: (-(sums[who] * PPM % whole), who))[: PPM - sum(parts.values())]:
        parts[who] += 1
    return tuple(sorted((who, part) for who, part in parts.items() if part))
