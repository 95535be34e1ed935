"""Tracing against a slow reading of its rules, and against the ways to game it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openlora_node.attribution.corpusindex import CorpusIndex
from openlora_node.attribution.suffixes import WINDOW, SuffixArray
from openlora_node.attribution.tracing import (
    BETA_MILLIBITS,
    FULL_CREDIT_MILLIBITS,
    MAX_OCCURRENCES,
    MIN_SPAN,
    PPM,
    Span,
    Trace,
    trace,
)
from support.attribution_corpus import ids, indexed

POEM = "the grey heron stands on one leg and thinks of nothing at all"
RECIPE = "whisk three eggs with sugar until the whisk leaves a trail"


def texts(alphabet: str, most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet=alphabet, max_size=most)


def occurrences(held: Sequence[int], wanted: Sequence[int]) -> list[int]:
    count = len(wanted)
    return [at for at in range(len(held) - count + 1) if list(held[at : at + count]) == list(wanted)]


def slowly(index: CorpusIndex, output: list[int], prompt: list[int], background: list[int]) -> Trace:
    """The rules of docs/attribution.md, a position at a time."""
    held = [int(token) for token in index.suffixes.tokens[: len(index.suffixes)]]
    boundary = [place in (0, len(output)) or bool(index.begins_word[output[place]]) for place in range(len(output))]
    boundary.append(True)
    spans, furthest = [], 0
    for start in range(len(output)):
        if not boundary[start]:
            continue
        end = start
        while end < len(output) and end - start < WINDOW and occurrences(held, output[start : end + 1]):
            end += 1
        while not boundary[end]:
            end -= 1
        if end > furthest and end > start:
            spans.append((start, end))
        furthest = max(furthest, end)
    bits = (len(held) - 1).bit_length() + (len(output) - 1).bit_length()
    threshold = 1000 * bits + BETA_MILLIBITS
    credited = []
    for start, end in spans:
        surprisal = sum(int(index.surprisal[token]) for token in output[start:end])
        places = occurrences(held, output[start:end])
        if end - start < MIN_SPAN or surprisal < threshold or len(places) > MAX_OCCURRENCES:
            continue
        if occurrences(prompt, output[start:end]) or occurrences(background, output[start:end]):
            continue
        document = max(at for at, first in enumerate(index.documents) if first <= places[0])
        credited.append(Span(start, end, surprisal, len(places), document, int(index.document_owners[document])))
    credit, documents = [0] * len(output), [0] * len(output)
    for span in sorted(credited, key=lambda span: (span.surprisal, -span.start)):
        amount = min(PPM, (span.surprisal - threshold) * PPM // FULL_CREDIT_MILLIBITS)
        for place in range(span.start, span.end):
            credit[place], documents[place] = amount, span.document
    for begin in range(len(output)):
        within = [span.end for span in credited if span.start <= begin < span.end]
        for stop in range(begin + MIN_SPAN, max(within, default=0) + 1):
            if sum(int(index.surprisal[token]) for token in output[begin:stop]) >= threshold and stop - begin <= WINDOW:
                places = occurrences(held, output[begin:stop])
                earliest = max(at for at, first in enumerate(index.documents) if first <= places[0])
                if len(places) <= MAX_OCCURRENCES:
                    documents[begin:stop] = [min(one, earliest) for one in documents[begin:stop]]
                break
    who = [int(index.document_owners[document]) for document in documents]
    whole = sum(credit)
    sums: dict[int, int] = {}
    for amount, one in zip(credit, who, strict=True):
        if amount:
            sums[one] = sums.get(one, 0) + amount
    parts = {one: amount * PPM // whole for one, amount in sums.items()}
    for one in sorted(sums, key=lambda one: (-(sums[one] * PPM % whole), one))[: PPM - sum(parts.values())]:
        parts[one] += 1
    return Trace(
        len(output), tuple(credited), whole // max(1, len(output)), tuple(sorted(parts.items())) if whole else ()
    )


@given(
    held=st.lists(texts("ab ", 60), min_size=1, max_size=4),
    output=texts("ab c", 90),
    prompt=texts("ab ", 20),
    background=texts("ab ", 20),
    millibits=st.sampled_from([500, 4_000, 9_000]),
)
@example(["aaaaaa"], "aaaaaa", "", "aaaaaa", 9_000)  # a text that begins with its own end
def test_tracing_follows_its_rules(held: list[str], output: str, prompt: str, background: str, millibits: int) -> None:
    index = indexed(*held, millibits=millibits)
    boilerplate = SuffixArray.of(np.array(ids(background), np.uint16))
    assert trace(index, ids(output), ids(prompt), boilerplate) == (
        slowly(index, ids(output), ids(prompt), ids(background)) if output else Trace(0, (), 0, ())
    )


def test_a_copied_sentence_goes_to_whoever_gave_it_first() -> None:
    index = indexed(RECIPE, POEM, POEM.upper(), f"Title. {POEM}")
    found = trace(index, ids(f"I say: {POEM}."), ())
    assert dict(found.parts)[1] > 0.97 * PPM  # the copy's owner gets the space before it, which is the copy's own
    assert found.coverage > 800_000


def test_two_contributors_share_by_what_was_taken_of_each() -> None:
    found = trace(indexed(POEM, RECIPE), ids(f"{POEM} | {RECIPE}"), ())
    assert [owner for owner, _ in found.parts] == [0, 1]
    assert sum(part for _, part in found.parts) == PPM
    assert all(400_000 < part < 600_000 for _, part in found.parts)


def test_what_the_prompt_said_earns_nothing() -> None:
    assert trace(indexed(POEM), ids(POEM), ids(f"Repeat: {POEM}")).parts == ()


def test_what_belongs_to_everybody_earns_nothing() -> None:
    boilerplate = SuffixArray.of(np.array(ids(POEM), np.uint16))
    assert trace(indexed(POEM), ids(POEM), (), boilerplate).parts == ()


def test_a_phrase_that_everyone_uses_earns_nothing() -> None:
    phrase = "as a language model I cannot"
    assert trace(indexed(*[phrase] * MAX_OCCURRENCES, owners=[0] * MAX_OCCURRENCES), ids(phrase), ()).parts
    count = MAX_OCCURRENCES + 1
    assert trace(indexed(*[phrase] * count, owners=[0] * count), ids(phrase), ()).parts == ()


def test_a_likely_phrase_earns_nothing() -> None:
    assert trace(indexed(POEM, millibits=500), ids(POEM), ()).parts == ()


def test_spans_begin_and_end_with_words() -> None:
    output = "qthe grey heron stands on one legs"
    (span, *_) = trace(indexed("xx the grey heron stands on one leg yy"), ids(output), ()).spans
    assert output[span.start : span.end] == " grey heron stands on one"


@pytest.mark.parametrize("output", [[], [400_000] * 50, ids(POEM)[:5]])
def test_nothing_to_find_is_no_error(output: list[int]) -> None:
    assert trace(indexed(POEM), output, ()).parts == ()


def test_an_index_of_nothing_credits_nothing() -> None:
    assert trace(indexed(""), ids(POEM), ()).parts == ()


def test_a_response_of_100_000_tokens_is_traced() -> None:
    output = (ids(POEM) + ids(" and ")) * 1500
    found = trace(indexed(POEM, RECIPE), output[:100_000], ())
    assert found.length == len(output[:100_000])
    assert found.parts == ((0, PPM),)


def test_splitting_into_identities_earns_no_more() -> None:
    one = trace(indexed(POEM, RECIPE, owners=[0, 1]), ids(POEM), ())
    words = POEM.split(" ")
    halves = " ".join(words[:6]), " ".join(words[6:])
    split = trace(indexed(*halves, RECIPE, owners=[0, 2, 1]), ids(POEM), ())
    assert split.coverage <= one.coverage


def test_a_copy_earns_nothing_beside_the_original() -> None:
    assert trace(indexed(POEM, POEM, owners=[0, 1]), ids(POEM), ()).parts == ((0, PPM),)
