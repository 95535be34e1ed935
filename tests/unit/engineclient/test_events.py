"""Events from bytes cut anywhere, chunks from events, numbers from metrics, and the speed that a client sees."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.engineclient.chunks import chunks_of
from openlora_node.engineclient.events import EventReader
from openlora_node.engineclient.gauges import gauge
from openlora_node.engineclient.meter import TokenMeter
from openlora_node.engineclient.values import Chunk, Mix, artifact_of, engine_name
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

DOCUMENTS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), max_size=8)


@given(DOCUMENTS, st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_events_do_not_depend_on_where_the_bytes_are_cut(texts: list[str], cuts: list[int], crlf: bool) -> None:
    documents = [json.dumps(text).encode() for text in texts]
    end = b"\r\n" if crlf else b"\n"
    data = b"".join(b"data: " + one + end + end for one in documents) + b": comment" + end + b"data: [DONE]" + end + end
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    reader, seen = EventReader(), []
    for start, stop in pairwise(places):
        seen += list(reader.feed(data[start:stop]))
    assert seen == documents
    assert reader.done


def test_an_event_is_bounded() -> None:
    reader = EventReader(max_event=100)
    assert list(reader.feed(b"data: " + b"x" * 50)) == []
    with pytest.raises(OpenLoraError, match="too large"):
        list(reader.feed(b"x" * 100))


def test_a_stream_that_says_no_done_is_not_done() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: {}\n\n")) == [b"{}"]
    assert not reader.done


def made(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"choices": choices}).encode()


def test_chunks_of_both_dialects() -> None:
    completion = made({"index": 1, "text": "a", "token_ids": [1, 2], "logprobs": {"tokens": ["a"]}})
    assert list(chunks_of(completion, 2)) == [Chunk(1, (1, 2), "a", b'{"tokens": ["a"]}')]
    chat = made({"index": 0, "delta": {"content": "a"}, "token_ids": [1], "finish_reason": "stop", "logprobs": None})
    assert list(chunks_of(chat, 1)) == [Chunk(0, (1,), "a", b"", "stop")]
    silent = made({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
    assert list(chunks_of(silent, 1)) == []
    assert list(chunks_of(b'{"choices": [], "usage": {"total_tokens": 1}}', 1)) == []


@pytest.mark.parametrize(
    "bad",
    [
        b"[]",
        b"{",
        b"\xff",
        made({"index": 1, "text": "a", "token_ids": [1]}),
        made({"index": -1, "text": "a", "token_ids": [1]}),
        made({"index": 0, "text": "a"}),
        made({"index": 0, "text": 5, "token_ids": [1]}),
        b'{"error": {"message": "x", "code": "DRAINING"}}',
        b'{"error": {"message": "x", "code": "OUT_OF_MEMORY"}}',
        b'{"error": {"message": "x", "code": 500}}',
    ],
)
def test_what_makes_no_sense_or_failed_is_a_failed_run(bad: bytes) -> None:
    with pytest.raises(OpenLoraError) as failed:
        list(chunks_of(bad, 1))
    assert failed.value.code is ErrorCode.ENGINE_FAILED


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNSUPPORTED", ErrorCode.UNSUPPORTED),
        ("BAD_REQUEST", ErrorCode.MALFORMED),
        (400, ErrorCode.MALFORMED),
        ("DRAINING", ErrorCode.ENGINE_FAILED),
        (503, ErrorCode.ENGINE_FAILED),
    ],
)
def test_an_event_that_tells_an_error_is_that_error(code: Any, expected: ErrorCode) -> None:
    with pytest.raises(OpenLoraError) as told:
        list(chunks_of(json.dumps({"error": {"message": "a grammar", "code": code}}).encode(), 1))
    assert told.value.code is expected
    assert "parse" not in told.value.message


def test_gauges_whatever_their_prefix() -> None:
    text = (
        "# HELP vllm:num_requests_running Running.\n"
        'vllm:num_requests_running{engine="0",model_name="a"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="a"} 2.0\n'
        'openlora:num_requests_waiting{model_name="a"} 1e1\n'
    )
    assert gauge(text, "num_requests_running") == 5
    assert gauge(text, "num_requests_waiting") == 10
    assert gauge(text, "num_requests_paused") == 0
    assert gauge("", "num_requests_running") == 0


def test_a_steady_rate_reads_as_itself_and_idling_changes_nothing() -> None:
    meter = TokenMeter()
    assert meter.rate(0.0) == 0.0
    meter.begin(100.0)
    for tenth in range(1, 601):
        meter.count(5, 100 + tenth / 10)
    assert meter.rate(160.0) == pytest.approx(50, rel=0.02)
    meter.end(160.0)
    assert meter.rate(10_000.0) == meter.rate(160.0)
    meter.begin(10_000.0)
    for tenth in range(1, 1201):
        meter.count(1, 10_000 + tenth / 10)
    assert meter.rate(10_120.0) == pytest.approx(10, rel=0.1)
    assert meter.running == 1


@given(st.binary(min_size=32, max_size=32))
def test_a_name_and_its_artifact(artifact: bytes) -> None:
    name = engine_name(artifact)
    assert artifact_of(name) == artifact
    assert not name.startswith("sha256:")
    for other in (name[:-1], name + "0", artifact.hex(), name.upper(), "artifact-" + "g" * 64, ""):
        assert artifact_of(other) is None


def test_a_mix_knows_its_single_adapter_and_its_seed() -> None:
    one = bytes(32)
    assert Mix(((one, 10_000),)).single == one
    assert Mix(((one, 9_500),)).single is None
    assert Mix().single is None
    assert Mix.seed_of(bytes(range(32))) == 0x0001020304050607
