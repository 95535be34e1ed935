"""A choice's text and its end equal those of a reader who has the whole output before him."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.request import FinishReason
from openlora_engine.sampling.detokenizer import TextDecoder
from openlora_engine.sampling.output import OutputRules
from openlora_engine.sampling.params import SamplingParams
from openlora_engine.sampling.stopping import Finish
from support.engine_tokenizer import tiny_tokenizer

DECODER = TextDecoder(tiny_tokenizer())
EOS = 0
A, B, ER = (DECODER._pieces.index(text) for text in (b"a", b"b", b"er"))
EURO = [DECODER._pieces.index(bytes([byte])) for byte in "€".encode()]
ALPHABET = [EOS, 2, A, B, ER, *EURO]


def rules(params: SamplingParams, *, prompt: int = 3, max_model_len: int = 1_000) -> OutputRules:
    return OutputRules(params, DECODER, eos_token_ids=[EOS], num_prompt_tokens=prompt, max_model_len=max_model_len)


def run(token_ids: list[int], output_rules: OutputRules) -> tuple[str, Finish | None, int]:
    """Feed until the finish: text, finish, tokens taken."""
    choice = output_rules.choice()
    text = ""
    for token_id in token_ids:
        delta = choice.add(token_id)
        text += delta.text
        if delta.finish is not None:
            return text, delta.finish, choice.num_tokens
    return text, None, choice.num_tokens


def first_match(deltas: list[str], strings: tuple[str, ...], first_token: int) -> tuple[int, str, str] | None:
    """(token, text before, stop string) of the first stop string to be complete at or after token `first_token`."""
    read = ""
    for number, delta in enumerate(deltas, start=1):
        for character in delta:
            read += character
            found = [string for string in strings if read.endswith(string)]
            if found and number >= first_token:
                longest = max(found, key=len)
                return number, read[: len(read) - len(longest)], longest
    return None


def expected(token_ids: list[int], params: SamplingParams, limit: int) -> tuple[str, Finish | None, int]:
    """By the rules, from the whole."""
    end: tuple[int, Finish] | None = None
    for number, token_id in enumerate(token_ids, start=1):
        if number >= params.min_tokens and token_id in params.stop_token_ids:
            end = number, Finish(FinishReason.STOP, token_id)
        elif number >= params.min_tokens and token_id == EOS and not params.ignore_eos:
            end = number, Finish(FinishReason.STOP)
        elif number >= limit:
            end = number, Finish(FinishReason.LENGTH)
        if end is not None:
            break
    taken = end[0] if end is not None else len(token_ids)
    detokenizer = DECODER.detokenizer()
    quiet = end is not None and end[1].reason is FinishReason.STOP and not params.include_stop
    deltas = [detokenizer.add(token_id) for token_id in token_ids[: taken - quiet]] + [""] * quiet
    if end is not None:
        deltas[-1] += detokenizer.flush()
    match = first_match(deltas, params.stop, max(params.min_tokens, 1))
    if match is not None:
        number, before, stop = match
        text = before + (stop if params.include_stop else "")
        by_token = end is not None and end[1].reason is FinishReason.STOP and number == taken
        return text, end[1] if end is not None and by_token else Finish(FinishReason.STOP, stop), number
    text = "".join(deltas)
    return text, end[1] if end is not None else None, taken


@given(
    token_ids=st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=14),
    stop=st.lists(st.sampled_from(["a", "ab", "b€", "€a", "era", "bb", "€", "\N{REPLACEMENT CHARACTER}"]), max_size=3),
    stop_token_ids=st.lists(st.sampled_from([A, 2, EURO[0]]), max_size=1),
    include_stop=st.booleans(),
    ignore_eos=st.booleans(),
    min_tokens=st.integers(0, 4),
    max_tokens=st.integers(4, 16),
)
def test_output_equals_the_rules_applied_to_the_whole(
    token_ids: list[int],
    stop: list[str],
    stop_token_ids: list[int],
    include_stop: bool,
    ignore_eos: bool,
    min_tokens: int,
    max_tokens: int,
) -> None:
    params = SamplingParams(
        max_tokens=max_tokens,
        stop=tuple(stop),
        stop_token_ids=tuple(stop_token_ids),
        include_stop=include_stop,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
    )
    text, finish, taken = run(token_ids, rules(params))
    expected_text, expected_finish, expected_taken = expected(token_ids, params, max_tokens)
    assert (finish, taken) == (expected_finish, expected_taken)
    if finish is not None:
        assert text == expected_text
    else:  # the rest is held back
        assert expected_text.startswith(text)


def test_end_of_sequence_gives_no_text_and_no_stop_reason() -> None:
    assert run([A, EOS], rules(SamplingParams())) == ("a", Finish(FinishReason.STOP, None), 2)


def test_a_stop_token_is_named_and_its_text_left_out() -> None:
    assert run([A, B], rules(SamplingParams(stop_token_ids=(B,)))) == ("a", Finish(FinishReason.STOP, B), 2)
    included = SamplingParams(stop_token_ids=(B,), include_stop=True)
    assert run([A, B], rules(included)) == ("ab", Finish(FinishReason.STOP, B), 2)


def test_the_context_length_ends_a_choice() -> None:
    assert run([A] * 9, rules(SamplingParams(max_tokens=50), prompt=6, max_model_len=10)) == (
        "aaaa",
        Finish(FinishReason.LENGTH),
        4,
    )
    assert rules(SamplingParams(max_tokens=50), prompt=10, max_model_len=10).checker.max_tokens == 0


def test_a_stop_string_beats_the_length_in_the_same_token() -> None:
    text, finish, _ = run([A, B], rules(SamplingParams(max_tokens=2, stop=("b",))))
    assert (text, finish) == ("a", Finish(FinishReason.STOP, "b"))


def test_text_held_back_comes_with_the_length() -> None:
    assert run([A, B, EURO[0]], rules(SamplingParams(max_tokens=3, stop=("ab\N{REPLACEMENT CHARACTER}c",)))) == (
        "ab\N{REPLACEMENT CHARACTER}",
        Finish(FinishReason.LENGTH),
        3,
    )


def test_a_complete_grammar_ends_a_choice() -> None:
    choice = rules(SamplingParams(ignore_eos=True)).choice()
    assert choice.add(A).finish is None
    assert choice.add(B, ended=True).finish == Finish(FinishReason.STOP)


def test_a_choice_ended_from_outside_gives_what_it_held() -> None:
    choice = rules(SamplingParams(stop=("abc",))).choice()
    assert choice.add(A).text == ""
    assert choice.abort() == "a"


@pytest.mark.parametrize("min_tokens", [0, 1, 3])
def test_nothing_stops_before_min_tokens(min_tokens: int) -> None:
    params = SamplingParams(min_tokens=min_tokens, stop=("a",), stop_token_ids=(B,))
    assert run([B, A, A, A], rules(params))[2] == max(1, min_tokens)
