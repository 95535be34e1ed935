"""Request bodies: what is served, what is refused and with which field named, and what the engine gets of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.server import fields as engine_fields
from openlora_engine.server import requests as engine_requests
from openlora_node.openai import BodyError, parse_body
from openlora_node.openai import fields as our_fields
from openlora_node.openai.bounds import field_names
from openlora_node.openai.shapes import AdapterOptions, Chat, Completion
from openlora_node.protocol.errors import ErrorCode

MIB = 1 << 20
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": HELLO} | more).encode()


def completion(**more: Any) -> bytes:
    return json.dumps({"prompt": "Once"} | more).encode()


def test_the_lists_are_the_engines() -> None:
    assert our_fields.IGNORED == engine_fields.IGNORED
    assert our_fields.HARMLESS_VALUES == engine_fields.HARMLESS_VALUES
    assert field_names(Chat) == frozenset(engine_requests.ChatBody.__struct_encode_fields__)
    assert field_names(AdapterOptions) == frozenset(engine_requests.AdapterOptions.__struct_encode_fields__)
    assert field_names(Completion) == frozenset(engine_requests.CompletionBody.__struct_encode_fields__)


def test_a_chat_with_all_that_matters_to_the_door() -> None:
    body = parse_body(
        chat(
            model="m", max_tokens=7, max_completion_tokens=9, n=3, stream=True, stream_options={"include_usage": True}
        ),
        MIB,
    )
    assert (body.kind, body.model, body.max_tokens, body.n, body.choices) == ("chat", "m", 9, 3, 3)
    assert body.stream
    assert body.include_usage
    assert not body.continuous_usage


def test_defaults_are_openais() -> None:
    assert parse_body(chat(), MIB).max_tokens is None
    assert parse_body(completion(), MIB).max_tokens == 16
    assert parse_body(chat(max_tokens=None, n=None, stop=None), MIB).n == 1


@pytest.mark.parametrize(("prompt", "prompts"), [("a", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1], [2, 3], [4]], 3)])
def test_prompts_are_counted(prompt: Any, prompts: int) -> None:
    body = parse_body(completion(prompt=prompt, n=2), MIB)
    assert (body.prompts, body.choices) == (prompts, 2 * prompts)


def test_the_engine_gets_the_prompt_and_the_sampling_and_nothing_else_of_the_clients() -> None:
    body = parse_body(
        chat(
            model="theirs",
            temperature=0,
            stop=["x"],
            max_tokens=500,
            user="someone",
            metadata={"a": "b"},
            tools=[],
            stream_options={"include_usage": True},
            stream=True,
            return_timings=True,
            adapters=[{"id": "one"}],
        ),
        MIB,
    )
    assert body.for_engine("base", [("a-1", 0.5), ("a-2", -1.0)], "dare_ties", max_tokens=20, seed=9) == {
        "messages": HELLO,
        "temperature": 0,
        "stop": ["x"],
        "model": "base",
        "stream": True,
        "return_token_ids": True,
        "n": 1,
        "max_tokens": 20,
        "adapters": [{"id": "a-1", "weight": 0.5}, {"id": "a-2", "weight": -1.0}],
        "adapter_method": "dare_ties",
        "adapter_options": {"seed": 9},
    }
    assert "max_tokens" not in body.for_engine("base", max_tokens=None)
    assert body.adapters == (("one", 1.0),)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"", "MALFORMED", None),
        (b"[]", "MALFORMED", None),
        (b'{"prompt": "a"', "MALFORMED", None),
        (b'{"prompt": "\xff"}', "MALFORMED", None),
        (b'{"prompt": "a", "guided_json": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "MALFORMED", None),
        (b'{"prompt": NaN}', "MALFORMED", None),
        (b"{}", "MALFORMED", "messages"),
        (json.dumps({"messages": HELLO, "prompt": "a"}).encode(), "MALFORMED", "messages"),
        (chat(temprature=1), "MALFORMED", "temprature"),
        (chat(temperature="hot"), "MALFORMED", "temperature"),
        (chat(temperature=101), "MALFORMED", "temperature"),
        (chat(max_tokens=True), "MALFORMED", "max_tokens"),
        (chat(max_tokens=1.5), "MALFORMED", "max_tokens"),
        (chat(max_tokens=-1), "MALFORMED", "max_tokens"),
        (chat(max_tokens=10**30), "MALFORMED", "max_tokens"),
        (chat(n=0), "MALFORMED", "n"),
        (chat(n=17), "MALFORMED", "n"),
        (chat(top_p=0), "MALFORMED", "top_p"),
        (chat(stop=[""]), "MALFORMED", "stop"),
        (chat(stop=["x"] * 17), "MALFORMED", "stop"),
        (chat(logit_bias={"1": 101}), "MALFORMED", "logit_bias"),
        (chat(seed=1 << 64), "MALFORMED", "seed"),
        (chat(top_logprobs=2), "MALFORMED", "top_logprobs"),
        (chat(stream_options={}), "MALFORMED", "stream_options"),
        (chat(model="m" * 257), "MALFORMED", "model"),
        (chat(tools=[{"type": "function"}]), "UNSUPPORTED", "tools"),
        (chat(chat_template="{{ x }}"), "UNSUPPORTED", "chat_template"),
        (chat(response_format={"type": "xml"}), "UNSUPPORTED", "response_format"),
        (chat(response_format={"type": "json_schema"}), "MALFORMED", "response_format"),
        (chat(guided_regex="a", guided_json={}), "MALFORMED", "guided_regex"),
        (chat(messages=[]), "MALFORMED", "messages"),
        (chat(messages=[{"role": "tool", "content": "x"}]), "UNSUPPORTED", "messages"),
        (chat(messages=[{"role": "user"}]), "MALFORMED", "messages"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "UNSUPPORTED", "messages"),
        (chat(messages=[{"role": "user", "content": "x", "tool_calls": [1]}]), "UNSUPPORTED", "messages"),
        (chat(adapters=[{"id": "a", "weight": 0}]), "MALFORMED", "adapters"),
        (chat(adapters=[{"id": str(i)} for i in range(5)]), "MALFORMED", "adapters"),
        (chat(adapters=[{"id": "a", "wieght": 1}]), "MALFORMED", "adapters"),
        (chat(adapter_method="cat"), "MALFORMED", "adapter_method"),
        (chat(adapters=[{"id": "a"}], adapter_method="dog"), "MALFORMED", "adapter_method"),
        (chat(adapters=[{"id": "a"}], adapter_options={"seed": 1}), "UNSUPPORTED", "adapter_options"),
        (completion(best_of=2), "UNSUPPORTED", "best_of"),
        (completion(echo=True), "UNSUPPORTED", "echo"),
        (completion(prompt=[]), "MALFORMED", "prompt"),
        (completion(prompt=["a", 1]), "MALFORMED", "prompt"),
        (completion(prompt=[[]]), "MALFORMED", "prompt"),
        (completion(prompt=[-1]), "MALFORMED", "prompt"),
        (completion(prompt=["a"] * 65), "MALFORMED", "prompt"),
        (completion(prompt=["a"] * 64, n=3), "MALFORMED", "n"),
        (completion(logprobs=21), "MALFORMED", "logprobs"),
        (b'{"messages": [{"role": "user", "content": "x"}], "guided_json": 1e999}', "MALFORMED", None),
        (b'{"messages": [{"role": "user", "content": "x"}], "guided_json": %s}' % (b"9" * 5000), "MALFORMED", None),
        (b'{"messages": [{"role": "user", "content": "x"}], "length_penalty": 1e999}', "UNSUPPORTED", "length_penalty"),
    ],
)
def test_what_is_not_served_is_refused_by_name(data: bytes, code: str, param: str | None) -> None:
    with pytest.raises(BodyError) as refused:
        parse_body(data, MIB)
    assert (refused.value.code, refused.value.param) == (ErrorCode(code), param)
    assert len(refused.value.message) <= 400
    if param is not None:
        assert param in refused.value.message


def test_a_body_is_measured_before_it_is_read() -> None:
    with pytest.raises(BodyError) as refused:
        parse_body(b"\xff" * 11, 10)
    assert refused.value.code is ErrorCode.FRAME_TOO_LARGE


def test_a_route_takes_its_own_kind_only() -> None:
    with pytest.raises(BodyError, match="messages"):
        parse_body(chat(), MIB, "completion")
    assert parse_body(completion(), MIB, "completion").kind == "completion"


@pytest.mark.parametrize("name", sorted(our_fields.IGNORED))
def test_bookkeeping_is_taken_and_not_passed_on(name: str) -> None:
    assert name not in parse_body(chat(**{name: {"x": 1}}), MIB).for_engine("m", max_tokens=1)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(BodyError):
        parse_body(data, MIB)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(field_names(Chat))), _JSON)
def test_any_value_of_any_field_is_served_or_refused_by_name(name: str, value: Any) -> None:
    try:
        body = parse_body(chat(**{name: value}), MIB)
    except BodyError as error:
        assert error.code in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED)
    else:
        json.dumps(body.for_engine("m", max_tokens=1), allow_nan=False)
