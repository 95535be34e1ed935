"""What others registered before stays theirs; what is one's own is found to be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.attribution.dataset import Sample
from openlora_node.attribution.originality import RUN, Originals, Piece, attributed, split_words
from support.attribution_corpus import owner

WORDS = [f"w{number}" for number in range(5_000)]


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def sample(who: int, *texts: str) -> Sample:
    return Sample(owner(who), "CC0-1.0", texts)


def test_new_texts_are_their_contributors() -> None:
    originals = Originals()
    for who in range(3):
        (verdict,) = originals.register([sample(who, text := prose(who, 200))])
        assert verdict.pieces == (Piece(0, len(text), owner(who)),)
        assert verdict.is_own(owner(who))


def test_a_copied_run_stays_with_the_first_and_the_rest_is_new() -> None:
    originals = Originals()
    first = prose(1, 300)
    originals.register([sample(0, first)])
    copied = " ".join(first.split()[100 : 100 + RUN + 10]).upper()
    text = f"{prose(2, 80)}  {copied}\n{prose(3, 80)}"
    (verdict,) = originals.register([sample(1, text)])
    assert [piece.owner for piece in verdict.pieces] == [owner(1), owner(0), owner(1)]
    stolen = verdict.pieces[1]
    assert text[stolen.start : stolen.end].strip() == copied
    assert "".join(text[piece.start : piece.end] for piece in verdict.pieces) == text


def test_a_run_one_word_short_is_nobodys_business() -> None:
    originals = Originals()
    first = prose(1, 300)
    originals.register([sample(0, first)])
    (verdict,) = originals.register([sample(1, f"{prose(2, 400)} {' '.join(first.split()[: RUN - 1])}")])
    assert verdict.is_own(owner(1))


def test_a_near_copy_joins_the_first_of_its_cluster() -> None:
    originals = Originals()
    words = prose(1, 200).split()
    originals.register([sample(0, " ".join(words))])
    words[50], words[150] = "other", "another"
    (second,) = originals.register([sample(1, " ".join(words))])
    words[100] = "third"
    (third,) = originals.register([sample(2, " ".join(words))])
    assert second.near == third.near == owner(0)
    assert {piece.owner for verdict in (second, third) for piece in verdict.pieces} == {owner(0)}


def test_a_shuffled_text_is_no_near_copy() -> None:
    originals = Originals()
    words = prose(1, 200).split()
    originals.register([sample(0, " ".join(words))])
    random.Random(5).shuffle(words)
    (verdict,) = originals.register([sample(1, " ".join(words))])
    assert verdict.is_own(owner(1))


def test_repeating_oneself_takes_nothing_from_anybody() -> None:
    originals = Originals()
    text = prose(1, 120)
    verdicts = originals.register([sample(0, text), sample(0, text), sample(0, text + " more")])
    assert all(verdict.is_own(owner(0)) for verdict in verdicts)


def test_splitting_a_copy_into_identities_gives_none_of_them_anything() -> None:
    originals = Originals()
    first = prose(1, 1000).split()
    originals.register([sample(0, " ".join(first))])
    for who in range(1, 11):
        (verdict,) = originals.register([sample(who, " ".join(first[100 * (who - 1) : 100 * who]))])
        assert {piece.owner for piece in verdict.pieces} == {owner(0)}


def test_an_index_takes_each_piece_under_its_owner() -> None:
    originals = Originals()
    first = prose(1, 100)
    originals.register([sample(0, first)])
    samples = [sample(1, f"{prose(2, 60)} {first}")]
    pieces = list(attributed(samples, originals.register(samples)))
    assert [piece.contributor for piece in pieces] == [owner(1), owner(0)]
    assert "".join(text for piece in pieces for text in piece.texts) == samples[0].texts[0]


@given(st.text(max_size=200))
def test_pieces_cover_any_text(text: str) -> None:
    (verdict,) = Originals().register([sample(0, text)])
    assert "".join(text[piece.start : piece.end] for piece in verdict.pieces) == text
    spans, words = split_words(text)
    assert len(spans) == len(words) == len(text.split())


@pytest.mark.parametrize("count", [0, 1, 4, 5, RUN - 1, RUN])
def test_short_texts_are_judged_too(count: int) -> None:
    originals = Originals()
    text = prose(1, count)
    originals.register([sample(0, text)])
    (verdict,) = originals.register([sample(1, text)])
    assert verdict.is_own(owner(1)) == (count == 0)


def test_copies_are_counted_once_whoever_brings_them() -> None:
    """A thousand copies, whole or in part, add no occurrence to the index: the first contributor keeps its credit."""
    first = prose(1, 120)
    run = " ".join(first.split()[20 : 20 + RUN + 5])
    copies = [sample(1, first if number % 2 else f"{prose(number, 90)} {run}") for number in range(2, 60)]
    samples = [sample(0, first), *copies]
    taken = list(attributed(samples, Originals().register(samples)))
    whole = " ".join(text for one in taken for text in one.texts)
    assert whole.count(run) == 1
    assert taken[0].texts == (first,)
    assert taken[0].contributor == owner(0)
    assert all(one.contributor == owner(1) for one in taken[1:]), "of the rest only what is new stays"
    assert len(taken) == 1 + sum(number % 2 == 0 for number in range(2, 60))


def test_a_copy_of_another_dataset_stays_in_the_index_under_its_owner() -> None:
    """What is indexed is this dataset: a response that repeats it is found here, for whom it belongs to."""
    originals = Originals()
    text = prose(1, 100)
    originals.register([sample(0, text)])
    later = [sample(1, text), sample(1, text)]
    (kept,) = attributed(later, originals.register(later))
    assert (kept.contributor, kept.texts) == (owner(0), (text,))
