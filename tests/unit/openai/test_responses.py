"""Responses read back by the official client's own types, and the oracle: a stream adds up to the whole response."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from openlora_node.openai import (
    Body,
    BodyError,
    Envelope,
    ModelEntry,
    StreamedResponse,
    WholeResponse,
    error_body,
    error_event,
    merge_logprobs,
    model_list,
    parse_body,
    retry_after,
)
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError


def body(**fields: Any) -> Body:
    prompt: dict[str, Any] = {} if "prompt" in fields else {"messages": [{"role": "user", "content": "x"}]}
    return parse_body(json.dumps(prompt | fields).encode(), 1 << 20)


def envelope(asked: Body) -> Envelope:
    return Envelope(asked, "1", 1_700_000_000, "m", prompt_tokens=5)


def data(sse: bytes) -> dict[str, Any]:
    assert sse.startswith(b"data: ")
    assert sse.endswith(b"\n\n")
    assert sse.count(b"\n") == 2
    return json.loads(sse[6:])


def test_a_chat_whole() -> None:
    whole = WholeResponse(envelope(body(n=2, return_token_ids=True)))
    whole.add(0, "Hel", (1, 2))
    whole.add(1, "Ho", (7,), finish_reason="length")
    whole.add(0, "lo", (3,), finish_reason="stop")
    raw = json.loads(whole.encode({"receipt": "0x1", "fee": "12"}))
    read = ChatCompletion.model_validate(raw)
    assert [choice.message.content for choice in read.choices] == ["Hello", "Ho"]
    assert [choice.finish_reason for choice in read.choices] == ["stop", "length"]
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens) == (5, 4, 9)
    assert read.id == "chatcmpl-1"
    assert raw["openlora"] == {"receipt": "0x1", "fee": "12"}
    assert raw["choices"][0]["token_ids"] == [1, 2, 3]


def test_a_completion_whole() -> None:
    whole = WholeResponse(envelope(body(prompt=["a", "b"])))
    whole.add(1, "two", (1,), finish_reason="stop")
    whole.finish(0, "length")
    raw = json.loads(whole.encode())
    read = Completion.model_validate(raw)
    assert [(choice.text, choice.finish_reason) for choice in read.choices] == [("", "length"), ("two", "stop")]
    assert read.object == "text_completion"
    assert "openlora" not in raw
    assert "token_ids" not in raw["choices"][0]
    with pytest.raises(IndexError):
        whole.add(2, "three")


def test_a_chat_streamed_says_who_speaks_once_a_choice() -> None:
    stream = StreamedResponse(envelope(body(n=2, stream=True, stream_options={"include_usage": True})))
    events = [stream.chunk(0, "a", (1,)), stream.chunk(1, "", (2,)), stream.chunk(0, "", (), finish_reason="stop")]
    chunks = [ChatCompletionChunk.model_validate(data(sse)) for sse in events]
    deltas = [(chunk.choices[0].delta.role, chunk.choices[0].delta.content) for chunk in chunks]
    assert deltas == [("assistant", "a"), ("assistant", ""), (None, None)]
    assert all(data(sse)["usage"] is None for sse in events)
    last = data(stream.usage({"fee": "1"}))
    assert (last["choices"], last["usage"]["completion_tokens"], last["openlora"]) == ([], 2, {"fee": "1"})


def test_usage_with_every_event_where_asked() -> None:
    stream = StreamedResponse(envelope(body(stream=True, stream_options={"continuous_usage_stats": True})))
    assert [data(stream.chunk(0, "a", (1, 2)))["usage"]["completion_tokens"] for _ in range(2)] == [2, 4]
    plain = StreamedResponse(envelope(body(stream=True)))
    assert "usage" not in data(plain.chunk(0, "a", (1,)))


@given(
    st.lists(st.tuples(st.integers(0, 1), st.text(max_size=4), st.lists(st.integers(0, 9), max_size=3)), max_size=12)
)
def test_chunks_add_up_to_the_whole(pieces: list[tuple[int, str, list[int]]]) -> None:
    for asked in (body(n=2, return_token_ids=True), body(prompt="p", n=2, return_token_ids=True)):
        whole, stream = WholeResponse(envelope(asked)), StreamedResponse(envelope(asked))
        texts, ids = ["", ""], [[], []]
        for choice, text, token_ids in pieces:
            whole.add(choice, text, token_ids)
            made = data(stream.chunk(choice, text, token_ids))["choices"][0]
            texts[choice] += made.get("text") or made.get("delta", {}).get("content") or ""
            ids[choice] += made["token_ids"]
        read = json.loads(whole.encode())["choices"]
        assert [one.get("text", one.get("message", {}).get("content")) for one in read] == texts
        assert [one["token_ids"] for one in read] == ids


def test_logprobs_of_pieces_are_joined_and_passed_on_only_when_asked_for() -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    part = json.dumps({"content": [entry], "refusal": None}).encode()
    for asked, expected in ((body(logprobs=True), [entry, entry]), (body(), None)):
        whole = WholeResponse(envelope(asked))
        whole.add(0, "a", (1,), part)
        whole.add(0, "", (2,))
        whole.add(0, "a", (3,), part)
        got = json.loads(whole.encode())["choices"][0]["logprobs"]
        assert (got and got["content"]) == expected
    offsets = merge_logprobs([b'{"text_offset":[0],"tokens":["a"]}', b"", b'{"text_offset":[1],"tokens":["b"]}'])
    assert json.loads(offsets) == {"text_offset": [0, 1], "tokens": ["a", "b"]}
    assert merge_logprobs([b"", b""]) == b""


def test_line_breaks_in_logprobs_do_not_break_the_event() -> None:
    stream = StreamedResponse(envelope(body(logprobs=True, stream=True)))
    assert data(stream.chunk(0, "a", (1,), b'{\n\n"content":\n[]}'))["choices"][0]["logprobs"] == {"content": []}


@pytest.mark.parametrize("bad", [b"[]", b"{", b"\xff", b'{} , "x": 1', b"[" * 50_000])
def test_a_nodes_logprobs_cannot_break_the_response(bad: bytes) -> None:
    asked = body(logprobs=True, stream=True)
    with pytest.raises(ProtocolError):
        StreamedResponse(envelope(asked)).chunk(0, "a", (1,), bad)
    whole = WholeResponse(envelope(asked))
    whole.add(0, "a", (1,), bad)
    with pytest.raises(ProtocolError):
        whole.encode()


def test_errors_have_openais_shape_and_the_protocols_fields() -> None:
    refused = json.loads(error_body(BodyError(ErrorCode.UNSUPPORTED, "`tools` is not supported", "tools")))["error"]
    assert refused == {
        "message": "`tools` is not supported",
        "type": "invalid_request_error",
        "param": "tools",
        "code": "UNSUPPORTED",
        "retryable": False,
    }
    for code in ErrorCode:
        told = json.loads(error_body(OpenLoraError(code)))["error"]
        assert (told["code"], told["message"], told["retryable"]) == (code.value, code.remedy, code.retryable)
        assert told["type"] == "server_error" if code.http_status >= 500 else told["type"] != "server_error"
    assert data(error_event(OpenLoraError(ErrorCode.NODE_LOST)))["error"]["code"] == "NODE_LOST"
    assert retry_after(OpenLoraError(ErrorCode.BUSY, retry_after_ms=1_001)) == "2"
    assert retry_after(OpenLoraError(ErrorCode.BUSY, retry_after_ms=0)) == "1"
    assert retry_after(OpenLoraError(ErrorCode.BUSY)) is None


def test_models_are_listed() -> None:
    listed = json.loads(model_list([ModelEntry(id="base", max_model_len=8), ModelEntry(id="base+a", parent="base")]))
    assert listed["object"] == "list"
    assert [(one["id"], one["parent"], one.get("max_model_len")) for one in listed["data"]] == [
        ("base", None, 8),
        ("base+a", "base", None),
    ]
