"""Shows a response as its payer may see it: which words repeat which sample, and whose. Pure.

A token that several spans cover counts for the most surprising, as in tracing. Only who has the text can do this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..protocol.crypto import Address
from .corpusindex import CorpusIndex
from .encoder import TokenizerEncoder
from .replay import Kept
from .suffixes import separator_of
from .tracer import Reading, prompt_tokens
from .tracing import Span, trace

MAX_SAMPLE = 2_000
"""Tokens of a sample that are shown."""


@dataclass(frozen=True)
class Source:
    """A credited span of one choice, [start, end) in tokens, and the sample that holds it."""

    choice: int
    start: int
    end: int
    millibits: int
    occurrences: int
    text: str
    sample: str
    contributor: Address


@dataclass(frozen=True)
class Piece:
    """Consecutive text of one choice; `source` is its place in the list of sources, None for text of nobody."""

    text: str
    source: int | None


@dataclass(frozen=True)
class Explained:
    """One dataset in one response."""

    sources: tuple[Source, ...]
    choices: tuple[tuple[Piece, ...], ...]


def explain(index: CorpusIndex, encoder: TokenizerEncoder, reading: Reading, kept: Kept) -> Explained:
    """Trace once more and keep the words. `reading` is of this encoder."""
    asked = prompt_tokens(encoder, kept.prompt)
    sources: list[Source] = []
    choices = []
    for number, tokens in enumerate(kept.output.choices):
        spans = trace(index, tokens, asked, reading.nobody).spans
        first = len(sources)
        for span in spans:
            sources.append(
                Source(
                    choice=number,
                    start=span.start,
                    end=span.end,
                    millibits=span.surprisal,
                    occurrences=span.occurrences,
                    text=encoder.text(tokens[span.start : span.end]),
                    sample=_sample(index, encoder, span.document),
                    contributor=index.owners[span.owner],
                )
            )
        choices.append(_pieces(tokens, spans, first, encoder))
    return Explained(tuple(sources), tuple(choices))


def _pieces(
    tokens: tuple[int, ...], spans: tuple[Span, ...], first: int, encoder: TokenizerEncoder
) -> tuple[Piece, ...]:
    """The text in runs of one source."""
    best: list[int | None] = [None] * len(tokens)
    order = sorted(range(len(spans)), key=lambda place: (spans[place].surprisal, -spans[place].start))
    for place in order:  # the most surprising is written last
        best[spans[place].start : spans[place].end] = [first + place] * (spans[place].end - spans[place].start)
    pieces = []
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or best[end] != best[start]:
            pieces.append(Piece(encoder.text(tokens[start:end]), best[start]))
            start = end
    return tuple(pieces)


def _sample(index: CorpusIndex, encoder: TokenizerEncoder, document: int) -> str:
    start = int(index.documents[document])
    held = np.asarray(index.suffixes.tokens[start : start + MAX_SAMPLE + 1])
    ends = np.flatnonzero(held == separator_of(held.dtype))
    stop = int(ends[0]) if len(ends) else MAX_SAMPLE
    return encoder.text([int(token) for token in held[:stop]]) + ("" if len(ends) else " …")
