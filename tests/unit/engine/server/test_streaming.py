"""Streams under strain: readers that lag, stall or leave, failures half-way, many at once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.request import FinishReason, GenerateRequest, TokenEvent
from openlora_engine.server.options import ServerConfig
from support.engine_backend import BASE, numbered, numbers
from support.engine_wire import ask, connected, get, post

COMPLETIONS = "/v1/completions"
STREAM = {"model": BASE, "prompt": "a", "stream": True}
LONG_TEXT = "x" * 4_000


async def bulky(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
    """`max_tokens` tokens, each with a text so long that sockets fill."""
    for step in range(request.params.max_tokens):
        event = numbered(request, 0, step)
        yield TokenEvent(
            event.request_id,
            0,
            event.token_ids,
            f"{step}:{LONG_TEXT} ",
            finish_reason=event.finish_reason,
            num_output_tokens=event.num_output_tokens,
        )


async def endless(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
    """Tokens until somebody cancels."""
    step = 0
    while True:
        yield TokenEvent(request.request_id, 0, (300 + step % 100,), f" {step}")
        step += 1


async def silent(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
    """Queued for ever."""
    await asyncio.Event().wait()
    yield TokenEvent(request.request_id, 0)


async def test_a_client_that_stops_reading_pauses_its_own_sequence_and_loses_nothing(server) -> None:
    server.backend.script = bulky
    async with connected(server.address, receive_buffer=4_096) as wire:
        await wire.post(COMPLETIONS, STREAM | {"max_tokens": 250})
        run = await server.backend.begun()
        await run.paused.wait()
        assert run.num_produced < 250
        assert run.live

        # Others are served meanwhile, and the lagging one makes no progress.
        produced = run.num_produced
        server.backend.script = numbers
        answer = await ask(server.address, post(COMPLETIONS, {"model": BASE, "prompt": "a", "max_tokens": 200}))
        assert answer.json["usage"]["completion_tokens"] == 200
        assert run.num_produced == produced

        # It reads on: everything comes, in order, in fewer and larger events than there were tokens.
        answer = await wire.answer()
    *events, done = answer.events
    assert done == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert text == "".join(f"{step}:{LONG_TEXT} " for step in range(250))
    assert len(events) < 250
    assert run.num_pauses >= 1


@pytest.mark.parametrize("config", [ServerConfig(port=0, stall_timeout_s=0.2)])
async def test_a_client_that_reads_nothing_for_long_is_cut_off(server) -> None:
    server.backend.script = bulky
    async with connected(server.address, receive_buffer=4_096) as wire:
        await wire.post(COMPLETIONS, STREAM | {"max_tokens": 250})
        run = await server.backend.begun()
        await run.cancelled.wait()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await wire.answer()


@pytest.mark.parametrize("config", [ServerConfig(port=0, stall_timeout_s=0.2, max_connections=1)])
async def test_a_whole_response_that_nobody_reads_is_cut_off(server) -> None:
    server.backend.script = bulky
    async with connected(server.address, receive_buffer=4_096) as wire:
        await wire.post(COMPLETIONS, {"model": BASE, "prompt": "a", "max_tokens": 250})
        await server.backend.begun()
        # It holds the one connection there is, until it is cut off.
        while (answer := await ask(server.address, get("/health"))).status == 429:
            assert answer.error["code"] == "BUSY"
        assert answer.status == 200


@pytest.mark.parametrize("script", [endless, silent])
@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_cancels_its_request(server, script, streams: bool) -> None:
    server.backend.script = script
    async with connected(server.address) as wire:
        await wire.post(COMPLETIONS, STREAM | {"stream": streams, "max_tokens": 200})
        run = await server.backend.begun()
        if streams and script is endless:
            await wire.head()
    await run.cancelled.wait()
    assert (await ask(server.address, get("/health"))).status == 200


async def test_a_client_that_leaves_before_its_body_is_whole(server) -> None:
    async with connected(server.address) as wire:
        await wire.send(post(COMPLETIONS, STREAM)[:-5])
    assert (await ask(server.address, get("/health"))).status == 200
    assert server.backend.requests == []


async def test_all_prompts_of_a_client_that_leaves_are_cancelled(server) -> None:
    server.backend.script = endless
    async with connected(server.address) as wire:
        await wire.post(COMPLETIONS, STREAM | {"prompt": ["a", "b", "c"], "max_tokens": 200})
        runs = [await server.backend.begun(number) for number in (1, 2, 3)]
        await wire.head()
    for run in runs:
        await run.cancelled.wait()


async def test_the_failure_of_one_prompt_ends_the_others(server) -> None:
    async def second_fails(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        if request.request_id.endswith("-1"):
            error = EngineError(Code.OUT_OF_MEMORY, "the step ran out of memory: send a shorter prompt")
            yield TokenEvent(request.request_id, 0, finish_reason=FinishReason.ERROR, error=error)
            return
        async for event in endless(request):
            yield event

    server.backend.script = second_fails
    body = {"model": BASE, "prompt": ["a", "b", "c"], "max_tokens": 200}
    answer = await ask(server.address, post(COMPLETIONS, body))
    assert (answer.status, answer.error["code"]) == (507, "OUT_OF_MEMORY")
    assert [run.live for run in server.backend.runs] == [False] * 3


async def test_a_refusal_half_way_through_the_prompts_cancels_those_before(server) -> None:
    generate = server.backend.generate

    def refuse_the_third(request: GenerateRequest):
        if len(server.backend.runs) == 2:
            raise EngineError(Code.BUSY, "too many requests wait: try later", retry_after_s=3)
        return generate(request)

    server.backend.generate = refuse_the_third
    answer = await ask(server.address, post(COMPLETIONS, STREAM | {"prompt": ["a", "b", "c"]}))
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert [run.live for run in server.backend.runs] == [False] * 2


async def test_a_stream_that_breaks_ends_with_the_error_and_without_done(server) -> None:
    async def breaks(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        yield numbered(request, 0, 0)
        yield TokenEvent(request.request_id, 0, finish_reason=FinishReason.CANCELLED)

    server.backend.script = breaks
    answer = await ask(server.address, post(COMPLETIONS, STREAM))
    first, last = (json.loads(event) for event in answer.events)
    assert first["choices"][0]["text"] == " 0.0"
    assert last["error"]["code"] == "CANCELLED"


async def test_an_engine_that_ends_a_stream_too_early_is_found_out(server) -> None:
    async def half(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        yield numbered(request, 0, 0)

    server.backend.script = half
    for body, code in ((STREAM, "ENGINE_FAILED"), (STREAM | {"stream": False}, "ENGINE_FAILED")):
        async with connected(server.address) as wire:
            await wire.post(COMPLETIONS, body)
            run = await server.backend.begun(len(server.backend.runs) + 1)
            await run.task
            await run.stream.aclose()
            answer = await wire.answer()
        error = json.loads(answer.events[-1])["error"] if body["stream"] else answer.error
        assert error["code"] == code


async def test_a_bug_in_mid_stream_is_the_last_event_and_the_logs(server, caplog) -> None:
    async def odd(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        yield numbered(request, 0, 0)
        yield TokenEvent(request.request_id, 0, (301,), text=7)  # type: ignore[arg-type]

    server.backend.script = odd
    with caplog.at_level(logging.ERROR):
        answer = await ask(server.address, post(COMPLETIONS, STREAM))
    assert json.loads(answer.events[-1])["error"]["code"] == "ENGINE_FAILED"
    assert "a fault in the stream" in caplog.text


async def test_usage_in_every_chunk_on_request(server) -> None:
    options = {"continuous_usage_stats": True}
    answer = await ask(server.address, post(COMPLETIONS, STREAM | {"max_tokens": 4, "stream_options": options}))
    *chunks, done = answer.events
    counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert done == "[DONE]"


async def test_chunks_without_news_are_not_sent(server) -> None:
    async def held_back(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        for step, text in enumerate(("", "", "abc", "")):
            yield TokenEvent(
                request.request_id, 0, (300 + step,), text, finish_reason=FinishReason.STOP if step == 3 else None
            )
            await asyncio.sleep(0)

    server.backend.script = held_back
    answer = await ask(server.address, post(COMPLETIONS, STREAM))
    assert len(answer.events) == 3
    told = await ask(server.address, post(COMPLETIONS, STREAM | {"return_token_ids": True}))
    ids = [token_id for event in told.events[:-1] for token_id in json.loads(event)["choices"][0]["token_ids"]]
    assert ids == [300, 301, 302, 303]


async def test_headers_of_a_stream(server) -> None:
    answer = await ask(server.address, post(COMPLETIONS, STREAM | {"max_tokens": 1}))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["server"] == "openlora-engine"
    assert f"cmpl-{answer.headers['x-request-id']}" == json.loads(answer.events[0])["id"]


@pytest.mark.slow
async def test_500_concurrent_requests(server) -> None:
    async def one(number: int) -> None:
        body = {"model": BASE, "prompt": f"number {number}", "max_tokens": 4, "user": str(number)}
        answer = await ask(server.address, post(COMPLETIONS, body | {"stream": number % 2 == 0}))
        assert answer.status == 200
        if number % 2 == 0:
            text = "".join(json.loads(event)["choices"][0]["text"] for event in answer.events[:-1])
        else:
            text = answer.json["choices"][0]["text"]
        assert text == " 0.0 0.1 0.2 0.3"

    async with asyncio.TaskGroup() as group:
        for number in range(500):
            group.create_task(one(number))
    assert {request.tenant for request in server.backend.requests} == {str(number) for number in range(500)}
