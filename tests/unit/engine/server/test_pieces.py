"""Events merged into pieces, pieces into bodies: any way to cut a stream gives the same response."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from openlora_engine.request import ChosenLogprob, FinishReason, GenerateRequest, TokenEvent, TokenLogprob
from openlora_engine.sampling.params import SamplingParams
from openlora_engine.server.chat_shape import ChatShape
from openlora_engine.server.completion_shape import CompletionShape
from openlora_engine.server.pieces import Tally, merge
from openlora_engine.server.responses import PromptTokensDetails, Usage
from openlora_engine.server.shape import Envelope
from openlora_engine.server.tokentext import TokenText
from support.engine_backend import BASE, TIMINGS, digest_of, numbered
from support.engine_tokenizer import tiny_tokenizer

TOKENS = TokenText(tiny_tokenizer())
USAGE = Usage(1, 2, 3, PromptTokensDetails(0))


def envelope(n: int = 1, **wants: bool) -> Envelope:
    return Envelope("id", 1, BASE, digest_of("sql"), ((1, 2), (3,)), n, **wants)


def events(choices: int, steps: int) -> list[TokenEvent]:
    request = GenerateRequest("r", (1, 2), SamplingParams(max_tokens=steps, n=choices, logprobs=2))
    return [numbered(request, index, step) for step in range(steps) for index in range(choices)]


@given(cuts=st.sets(st.integers(1, 11)), choices=st.integers(1, 3))
def test_any_cut_of_the_events_adds_up_to_the_whole(cuts: set[int], choices: int) -> None:
    seen = events(choices, 4)
    edges = [0, *sorted(cut for cut in cuts if cut < len(seen)), len(seen)]
    parts = [seen[start:end] for start, end in pairwise(edges)]
    wants = envelope(choices, logprobs=True, return_token_ids=True)
    whole = {piece.choice: piece for piece in merge(seen, 0, choices)}
    shape, tally = CompletionShape(wants, TOKENS), Tally([2], choices)
    text: dict[int, str] = {}
    offsets: dict[int, list[int]] = {}
    for part in parts:
        for piece in merge(part, 0, choices):
            tally.add(piece)
            [choice] = msgspec.json.decode(msgspec.json.encode(shape.chunk(piece, None)))["choices"]
            text[choice["index"]] = text.get(choice["index"], "") + choice["text"]
            offsets.setdefault(choice["index"], []).extend(choice["logprobs"]["text_offset"])
    assert text == {index: piece.text for index, piece in whole.items()}
    complete = CompletionShape(wants, TOKENS).whole(list(whole.values()), USAGE)
    made = Completion.model_validate_json(msgspec.json.encode(complete))
    assert offsets == {choice.index: choice.logprobs.text_offset for choice in made.choices}
    assert tally.usage == Usage(2, 4 * choices, 2 + 4 * choices, PromptTokensDetails(3))


def test_choices_are_numbered_through_all_prompts() -> None:
    assert [piece.choice for piece in merge(events(2, 1), 3, 2)] == [6, 7]


def test_offsets_count_characters_and_wait_for_whole_ones() -> None:
    ids = tiny_tokenizer()("é👋!", add_special_tokens=False).input_ids
    entries = tuple(ChosenLogprob(TokenLogprob(token_id, -1.0)) for token_id in ids)
    event = TokenEvent("r", 0, tuple(ids), "é👋!", entries, finish_reason=FinishReason.STOP)
    shape = CompletionShape(envelope(logprobs=True), TOKENS)
    body = Completion.model_validate_json(msgspec.json.encode(shape.whole(merge([event], 0, 1), USAGE)))
    offsets = body.choices[0].logprobs.text_offset
    assert offsets == sorted(offsets)
    assert offsets[-1] == 2
    assert all(token.startswith("bytes:") for token in body.choices[0].logprobs.tokens[:-1] if token not in ("é", "👋"))


def test_bodies_are_what_the_official_types_take() -> None:
    pieces = merge(events(2, 2), 0, 2)
    chat = ChatShape(envelope(2, logprobs=True, return_token_ids=True, return_timings=True), TOKENS)
    whole = msgspec.json.encode(chat.whole(pieces, USAGE))
    ChatCompletion.model_validate_json(whole, strict=True)
    chunk = msgspec.json.encode(chat.chunk(pieces[0], None))
    ChatCompletionChunk.model_validate_json(chunk, strict=True)
    ChatCompletionChunk.model_validate_json(msgspec.json.encode(chat.usage_chunk(USAGE)), strict=True)
    completion = CompletionShape(envelope(2, logprobs=True), TOKENS)
    Completion.model_validate_json(msgspec.json.encode(completion.whole(pieces, USAGE)), strict=True)
    Completion.model_validate_json(msgspec.json.encode(completion.usage_chunk(USAGE)), strict=True)


def test_what_was_not_asked_for_is_not_there() -> None:
    pieces = merge(events(1, 2), 0, 1)
    body = msgspec.json.decode(msgspec.json.encode(ChatShape(envelope(), TOKENS).whole(pieces, USAGE)))
    assert body["openlora"] == {"adapter": digest_of("sql")}
    assert "prompt_token_ids" not in body
    assert "token_ids" not in body["choices"][0]
    assert body["choices"][0]["logprobs"] is None
    base = Envelope("id", 1, BASE, None, ((1,),))
    plain = msgspec.json.decode(msgspec.json.encode(ChatShape(base, TOKENS).whole(pieces, USAGE)))
    assert plain["openlora"] == {"adapter": None}


def test_infinite_logprobs_are_a_number_in_json() -> None:
    entry = ChosenLogprob(TokenLogprob(65, float("-inf")), (TokenLogprob(66, float("-inf")),))
    event = TokenEvent("r", 0, (65,), "a", (entry,), finish_reason=FinishReason.STOP, timings=TIMINGS)
    for shape in (ChatShape, CompletionShape):
        text = msgspec.json.encode(shape(envelope(logprobs=True), TOKENS).whole(merge([event], 0, 1), USAGE)).decode()
        assert text.count("-9999.0") == 2


def test_usage_counts_a_prompt_once_and_its_cache_by_the_first_choice() -> None:
    tally = Tally([2, 1], 2)
    for prompt in (0, 1):
        for piece in merge(events(2, 3), prompt, 2):
            tally.add(piece)
    assert tally.usage == Usage(3, 12, 15, PromptTokensDetails(2 * TIMINGS.num_cached_tokens))
