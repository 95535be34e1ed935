"""Bodies to engine requests: defaults, names, constraints; and whatever JSON comes, nothing but EngineError."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.errors import Code, EngineError
from openlora_engine.sampling.params import Constraint, ConstraintKind, SamplingParams
from openlora_engine.server.backend import MixOptions, ModelCard
from openlora_engine.server.constraint import constraint
from openlora_engine.server.conversion import generate_requests, sampling_params, split_model, target, tenant_of
from openlora_engine.server.decoding import decode
from openlora_engine.server.requests import ChatBody, CompletionBody, GenerationBody
from support.engine_backend import ALIAS, BASE, FakeBackend, digest_of
from support.engine_tokenizer import tiny_tokenizer

MODEL = FakeBackend(tiny_tokenizer()).model
DIGEST = digest_of("sql")


def completion(**fields: object) -> CompletionBody:
    return decode(msgspec.json.encode({"model": BASE, "prompt": "a"} | fields), CompletionBody)


def chat(**fields: object) -> ChatBody:
    return decode(msgspec.json.encode({"model": BASE, "messages": []} | fields), ChatBody)


def requests(body: GenerationBody, *prompts: tuple[int, ...]):
    return generate_requests(body, prompts, MODEL, response_id="r", adapter=None, tenant="")


def test_defaults_are_openais() -> None:
    [request] = requests(completion(), (1, 2))
    assert request.params == SamplingParams(max_tokens=16)
    [request] = requests(chat(), (1, 2))
    assert request.params == SamplingParams(max_tokens=MODEL.max_model_len - 2)


def test_a_completions_default_shrinks_to_what_the_context_leaves() -> None:
    [request] = requests(completion(), (1,) * 250)
    assert request.params.max_tokens == 6
    [request] = requests(completion(max_tokens=0), (1,) * 256)
    assert request.params.max_tokens == 0


def test_chats_newer_name_of_max_tokens_goes_first() -> None:
    [request] = requests(chat(max_tokens=3, max_completion_tokens=5), (1,))
    assert request.params.max_tokens == 5


def test_one_request_a_prompt() -> None:
    made = requests(completion(n=2, seed=7), (1,), (2, 3))
    assert [request.request_id for request in made] == ["r-0", "r-1"]
    assert [request.prompt_token_ids for request in made] == [(1,), (2, 3)]
    assert requests(completion(), (1,))[0].request_id == "r"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": 0}, 0),
        ({"logprobs": 5}, 5),
    ],
)
def test_completion_logprobs(fields: dict, expected: int | None) -> None:
    assert sampling_params(completion(**fields), 1, MODEL, default_max_tokens=1).logprobs == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_chat_logprobs(fields: dict, expected: int | None) -> None:
    assert sampling_params(chat(**fields), 1, MODEL, default_max_tokens=1).logprobs == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BASE, (BASE, None)),
        (ALIAS, (ALIAS, None)),
        (MODEL.digest, (MODEL.digest, None)),
        ("sql", (None, None)),
        (DIGEST, (None, None)),
        (f"{BASE}+sql", (BASE, "sql")),
        (f"{ALIAS}+a+b", (ALIAS, "a+b")),
        (f"{MODEL.digest}+sql", (MODEL.digest, "sql")),
        (f"{BASE}+sql@{DIGEST}", (BASE, DIGEST)),
        (f"{BASE}+{DIGEST}", (BASE, DIGEST)),
        (f"{BASE}+sql@v2", (BASE, "sql@v2")),
        (f"{BASE}+sql{DIGEST}", (BASE, f"sql{DIGEST}")),
        (f"{BASE}+", (BASE, "")),
        (f"{BASE}-2", (None, None)),
        ("", (None, None)),
    ],
)
def test_model_names(name: str, expected: tuple[str | None, str | None]) -> None:
    assert split_model(name, MODEL) == expected


def test_targets() -> None:
    plain = target(completion(model="sql"), MODEL)
    assert (plain.model, plain.adapters, plain.method, plain.options) == ("sql", (), "cat", MixOptions())
    named = target(completion(model=f"{BASE}+sql@{DIGEST}"), MODEL)
    assert (named.model, named.adapters) == (BASE, ((DIGEST, 1.0),))
    mixed = target(
        completion(
            adapters=[{"id": "sql"}, {"id": "law", "weight": 0}],
            adapter_method="svd",
            adapter_options={"svd_rank": 4, "majority_sign_method": "total", "seed": 7},
        ),
        MODEL,
    )
    assert (mixed.model, mixed.adapters, mixed.method) == (BASE, (("sql", 1.0), ("law", 0.0)), "svd")
    assert mixed.options == MixOptions(svd_rank=4, majority_sign_method="total", seed=7)


@pytest.mark.parametrize("name", [BASE, ALIAS, MODEL.digest])
def test_every_name_of_the_base_is_resolved_as_its_first(name: str) -> None:
    assert target(completion(model=name), MODEL).model == BASE
    assert target(completion(model=f"{name}+sql"), MODEL).model == BASE


def test_a_base_named_twice_is_no_adapter() -> None:
    odd = ModelCard(("a", "a+b"), MODEL.digest, 16, 16, 0)
    assert split_model("a+b", odd) == ("a+b", None)
    assert split_model("a+c", odd) == ("a", "c")


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "kind", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, ConstraintKind.JSON_OBJECT, ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "json_schema", None),
        ({"guided_json": SCHEMA}, ConstraintKind.JSON_SCHEMA, None),
        ({"guided_json": '{"type":"object"}'}, ConstraintKind.JSON_SCHEMA, None),
        ({"guided_regex": r"\d+"}, ConstraintKind.REGEX, r"\d+"),
        ({"structured_outputs": {"json": SCHEMA}}, ConstraintKind.JSON_SCHEMA, None),
        ({"structured_outputs": {"regex": "a|b"}}, ConstraintKind.REGEX, "a|b"),
        ({"structured_outputs": {"json_object": True}}, ConstraintKind.JSON_OBJECT, ""),
    ],
)
def test_every_way_to_constrain(fields: dict, kind: str, grammar: str | None) -> None:
    found = constraint(chat(**fields))
    assert found == Constraint(ConstraintKind(kind), '{"type":"object"}' if grammar is None else grammar)


@pytest.mark.parametrize(
    "fields", [{}, {"structured_outputs": {}}, {"structured_outputs": {"json_object": False}}, {"guided_json": None}]
)
def test_no_constraint(fields: dict) -> None:
    assert constraint(chat(**fields)) is None


@given(choices=st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_choices_are_a_regex_for_exactly_themselves(choices: list[str]) -> None:
    found = constraint(chat(guided_choice=choices))
    assert found is not None
    for choice in choices:
        assert re.fullmatch(found.grammar, choice)
        assert not re.fullmatch(found.grammar, choice + "x") or choice + "x" in choices


def test_tenants() -> None:
    assert tenant_of(None, completion()) == ""
    assert tenant_of(None, completion(user="alice")) == "alice"
    assert tenant_of("bob", completion(user="alice")) == "bob"
    assert tenant_of("", completion(user="alice")) == ""


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(set(ChatBody.__struct_fields__) | set(CompletionBody.__struct_fields__))


@given(kind=st.sampled_from([ChatBody, CompletionBody]), fields=st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_whatever_json_comes_gives_requests_or_an_error_with_a_code(kind: type, fields: dict) -> None:
    body = {"model": BASE} | ({"messages": []} if kind is ChatBody else {"prompt": "a"}) | fields
    try:
        made = decode(msgspec.json.encode(body), kind)
        target(made, MODEL)
        for request in requests(made, (1, 2, 3)):
            request.params.validate(MODEL.vocab_size)
    except EngineError as error:
        assert error.code in (Code.BAD_REQUEST, Code.UNSUPPORTED, Code.PROMPT_TOO_LONG)


@given(body=st.binary(max_size=40))
def test_whatever_bytes_come_give_an_error_with_a_code(body: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        decode(body, ChatBody)
    assert caught.value.code is Code.BAD_REQUEST
