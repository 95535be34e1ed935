"""The client against a scripted server: what it asks, what it makes of answers, and that it lets go of everything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from openlora_node.engineclient import Channel, EngineClient, EngineState, Mix, engine_name
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level
from support.engineclient_server import MODELS, NATIVE_VERSION, Script, body, client_of, event, scripted, token

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32
BASE = Mix()
BOTH = Mix(((ONE, 7_000), (TWO, -3_000)), "dare_ties", seed=5)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
FOLDER = Path("/store/sha256/01/a")


async def failing(work: Awaitable[Any]) -> OpenLoraError:
    with pytest.raises(OpenLoraError) as failed:
        await work
    return failed.value


def run(client: EngineClient, asked: Any = None, mix: Mix = BASE, **more: Any) -> Any:
    return client.generate(asked or body(), mix, max_tokens=8, tenant="payer", request_id="r-1", **more)


async def all_of(client: EngineClient, asked: Any = None, mix: Mix = BASE) -> list[Any]:
    async with run(client, asked, mix) as chunks:
        return [chunk async for chunk in chunks]


def asked_for(script: Script, path: str) -> list[Any]:
    return [asked for at, asked in script.asked if at == path]


async def test_what_the_engine_is_and_its_digest() -> None:
    digests = set()
    for changed in ({}, {"version": "2"}, {"model_digest": "sha256:" + "0" * 64}, {"dtype": "bfloat16"}):
        async with scripted(NATIVE_VERSION | changed) as script, client_of(script) as client:
            info = await client.info()
            digests.add(info.digest)
            assert (info.model, info.max_model_len, info.eos_token_ids) == ("base", 256, (2,))
            await client.info()
            assert len(asked_for(script, "/version")) == 1
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {32}


@pytest.mark.parametrize("version", [{}, [], {"version": 1}, NATIVE_VERSION | {"model": "other"}])
async def test_an_engine_that_does_not_say_what_it_is(version: Any) -> None:
    async with scripted(version) as script, client_of(script) as client:
        assert (await failing(client.info())).code is ErrorCode.ENGINE_FAILED


async def test_tokens_come_as_chunks_and_the_engine_is_asked_in_its_words() -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(
            COMPLETIONS,
            token(1) + token(2, choice=1)[:9],
            token(2, choice=1)[9:] + token(3, 1, "stop"),
            token(4, 0, "length"),
            DONE,
        )
        chunks = await all_of(client, body(n=2, temperature=0, user="u"), BOTH)
    assert [(chunk.choice, chunk.token_ids, chunk.text, chunk.finish_reason) for chunk in chunks] == [
        (0, (1,), " 1", None),
        (1, (2,), " 2", None),
        (1, (3,), " 3", "stop"),
        (0, (4,), " 4", "length"),
    ]
    assert asked_for(script, COMPLETIONS) == [
        {
            "prompt": "x",
            "temperature": 0,
            "model": "base",
            "stream": True,
            "return_token_ids": True,
            "n": 2,
            "max_tokens": 8,
            "adapters": [{"id": engine_name(ONE), "weight": 0.7}, {"id": engine_name(TWO), "weight": -0.3}],
            "adapter_method": "dare_ties",
            "adapter_options": {"seed": 5},
        }
    ]
    assert script.headers[-1]["X-OpenLoRA-Tenant"] == "payer"
    assert script.headers[-1]["X-Request-Id"] == "r-1"


async def test_one_adapter_at_weight_1_is_asked_for_by_name() -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(
            CHAT,
            event(choices=[{"index": 0, "delta": {"content": "a"}, "token_ids": [1], "finish_reason": "stop"}]),
            DONE,
        )
        await all_of(client, body(messages=[{"role": "user", "content": "x"}]), Mix(((ONE, 10_000),)))
    (asked,) = asked_for(script, CHAT)
    assert asked["model"] == engine_name(ONE)
    assert "adapters" not in asked


async def test_leaving_early_cuts_the_connection() -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(COMPLETIONS, token(1), then=asyncio.Event().wait)
        async with run(client) as chunks:
            assert (await anext(chunks)).token_ids == (1,)
        async with asyncio.timeout(10):
            await script.gone.wait()


async def test_cancelling_the_consumer_cuts_the_connection() -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(COMPLETIONS, token(1), then=asyncio.Event().wait)
        begun = asyncio.Event()

        async def consume() -> None:
            async with run(client) as chunks:
                async for _ in chunks:
                    begun.set()

        task = asyncio.create_task(consume())
        async with asyncio.timeout(10):
            await begun.wait()
            task.cancel()
            await script.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (token(1),),
        (token(1, finish="stop"),),
        (token(1), DONE),
        (token(1), event(error={"message": "x", "code": "DRAINING"})),
        (b"data: nonsense\n\n",),
    ],
)
async def test_a_stream_that_breaks_is_a_failed_run(parts: tuple[bytes, ...]) -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(COMPLETIONS, *parts)
        failed = await failing(all_of(client))
        assert failed.code is ErrorCode.ENGINE_FAILED
        assert len(asked_for(script, COMPLETIONS)) == 1


async def test_a_connection_that_is_cut_is_a_failed_run() -> None:
    async with scripted() as script, client_of(script) as client:

        async def cut(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(token(1))
            assert request.transport is not None
            request.transport.abort()
            return response

        script.answers[COMPLETIONS] = cut
        assert (await failing(all_of(client))).code is ErrorCode.ENGINE_FAILED


async def test_an_engine_that_falls_silent_is_a_failed_run() -> None:
    async with scripted() as script, client_of(script, silence_s=0.2) as client:
        script.stream(COMPLETIONS, token(1), then=asyncio.Event().wait)
        failed = await failing(all_of(client))
        assert failed.code is ErrorCode.ENGINE_FAILED
        assert "silent" in failed.message


async def test_what_the_consumer_raises_is_its_own() -> None:
    async with scripted() as script, client_of(script) as client:
        script.stream(COMPLETIONS, token(1), then=asyncio.Event().wait)
        for raised in (ConnectionResetError("the payer is gone"), KeyError("x")):
            with pytest.raises(type(raised)):
                async with run(client) as chunks:
                    await anext(chunks)
                    raise raised


async def test_a_slow_consumer_holds_back_its_own_stream_only() -> None:
    written, full = 0, asyncio.Event()
    big = event(choices=[{"index": 0, "text": "x" * 4_000, "token_ids": [1], "finish_reason": None}])

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            try:
                async with asyncio.timeout(0.5):
                    await response.write(big)
            except TimeoutError:
                full.set()
                return response
            written += len(big)
            if written > 64 << 20:
                return response

    async with scripted() as script, client_of(script) as client:
        script.answers[COMPLETIONS] = flood
        async with run(client) as chunks:
            await anext(chunks)
            async with asyncio.timeout(30):
                await full.wait()
            script.stream(
                CHAT,
                event(choices=[{"index": 0, "delta": {"content": "a"}, "token_ids": [1], "finish_reason": "stop"}]),
                DONE,
            )
            assert len(await all_of(client, body(messages=[{"role": "user", "content": "x"}]))) == 1
    assert written < 16 << 20  # what sockets and buffers hold, and no more


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (429, "BUSY", ErrorCode.BUSY),
        (503, "DRAINING", ErrorCode.ENGINE_UNAVAILABLE),
        (400, "PROMPT_TOO_LONG", ErrorCode.PROMPT_TOO_LONG),
        (404, "MODEL_NOT_FOUND", ErrorCode.ADAPTER_NOT_FOUND),
        (400, "UNSUPPORTED", ErrorCode.UNSUPPORTED),
    ],
)
async def test_refusals_come_on_entering(status: int, code: str, expected: ErrorCode) -> None:
    async with scripted() as script, client_of(script) as client:
        script.json(COMPLETIONS, {"error": {"message": "why", "code": code}}, status, **{"Retry-After": "7"})
        failed = await failing(all_of(client))
        assert (failed.code, failed.message) == (expected, "why")
        assert failed.retry_after_ms == (7_000 if expected.retryable else None)


async def test_nobody_listens() -> None:
    async with scripted() as script, client_of(script) as client:
        await client.info()
        url = script.url
    async with EngineClient(Channel(url=url)) as client:
        for work in (client.info(), client.loaded(), client.load(), client.ensure(ONE, FOLDER)):
            assert (await failing(work)).code is ErrorCode.ENGINE_UNAVAILABLE
        assert (await client.health()).level is Level.DOWN
        assert (await client.report()).state is EngineState.UNREACHABLE


async def test_a_closed_client_is_an_engine_that_is_not_there() -> None:
    async with scripted() as script:
        async with client_of(script) as client:
            pass
        for work in (client.info(), client.loaded(), client.count(body(), BASE), all_of(client)):
            assert (await failing(work)).code is ErrorCode.ENGINE_UNAVAILABLE
        assert (await client.report()).state is EngineState.UNREACHABLE


async def test_no_connection_left_is_busy_and_calls_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as script, client_of(script, max_streams=1, connect_s=0.2) as client:
        script.stream(COMPLETIONS, token(1), then=asyncio.Event().wait)
        async with run(client) as chunks:
            await anext(chunks)
            refused = await failing(all_of(client))
            assert refused.code is ErrorCode.BUSY
            assert refused.retry_after_ms
            await client.loaded()


async def test_health_says_since_when() -> None:
    now = [1_000.0]
    async with scripted() as script, EngineClient(Channel(url=script.url), clock=lambda: now[0]) as client:
        script.json("/health", {"status": "ok", "message": ""})
        assert (await client.health()).level is Level.UP
        now[0] = 2_000.0
        assert (await client.health()).since == 1_000
        script.json("/health", {"status": "failed", "message": "5 steps failed"}, 503)
        health = await client.health()
        assert (health.level, health.reason, health.since) == (Level.DOWN, "5 steps failed", 2_000)
        assert (await client.report()).state is EngineState.FAILED
        script.json("/health", {"status": "draining", "message": ""}, 503)
        assert (await client.report()).state is EngineState.DRAINING
        script.json("/health", "what", 500)
        assert (await client.report()).state is EngineState.FAILED


async def test_prompts_are_counted_by_the_engine_and_ids_by_themselves() -> None:
    async with scripted() as script, client_of(script) as client:
        script.json("/tokenize", {"count": 5, "max_model_len": 8, "tokens": []})
        chat = body(messages=[{"role": "user", "content": "x"}], chat_template_kwargs={"a": 1}, temperature=1)
        assert await client.count(chat, BASE) == 5
        assert await client.count(body(prompt=["a", "b"], n=2, add_special_tokens=False), BASE) == 10
        assert await client.count(body(prompt=[1, 2, 3]), BASE) == 3
        assert await client.count(body(prompt=[[1], [2, 3]]), BASE) == 3
        assert asked_for(script, "/tokenize") == [
            {"model": "base", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": 1}},
            {"model": "base", "prompt": "a", "add_special_tokens": False},
            {"model": "base", "prompt": "b", "add_special_tokens": False},
        ]
        script.json("/tokenize", {"count": 257})
        for long in (chat, body(prompt=["a", "b"]), body(prompt=[1] * 257)):
            assert (await failing(client.count(long, BASE))).code is ErrorCode.PROMPT_TOO_LONG
        script.json("/tokenize", {"nothing": 1})
        assert (await failing(client.count(body(), BASE))).code is ErrorCode.ENGINE_FAILED


async def test_load_and_speed() -> None:
    now = [0.0]
    async with scripted() as script, EngineClient(Channel(url=script.url), monotonic=lambda: now[0]) as client:

        async def metrics(_request: web.Request) -> web.Response:
            return web.Response(text='x:num_requests_running{a="b"} 3.0\nx:num_requests_waiting{a="b"} 4.0\n')

        script.answers["/metrics"] = metrics
        assert (await client.load()).tokens_per_second == 0
        script.stream(COMPLETIONS, token(1), token(2, finish="stop"), DONE)
        async with run(client) as chunks:
            async for _ in chunks:
                now[0] += 0.5
        load = await client.load()
        assert (load.running, load.waiting) == (3, 4)
        assert load.tokens_per_second == pytest.approx(2, rel=0.05)


async def test_an_adapter_is_told_once_however_many_ask() -> None:
    async with scripted() as script, client_of(script) as client:
        script.json("/v1/load_lora_adapter", "ok")
        await asyncio.gather(*(client.ensure(ONE, FOLDER) for _ in range(50)))
        await client.ensure(ONE, FOLDER)
        assert asked_for(script, "/v1/load_lora_adapter") == [{"lora_name": engine_name(ONE), "lora_path": str(FOLDER)}]


async def test_a_waiter_that_leaves_does_not_take_the_load_with_it() -> None:
    async with scripted() as script, client_of(script) as client:
        asked, go = asyncio.Event(), asyncio.Event()

        async def slow(_request: web.Request) -> web.Response:
            asked.set()
            await go.wait()
            return web.json_response("ok")

        script.answers["/v1/load_lora_adapter"] = slow
        first, second = (asyncio.create_task(client.ensure(ONE, FOLDER)) for _ in range(2))
        async with asyncio.timeout(10):
            await asked.wait()
            first.cancel()
            go.set()
            await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(asked_for(script, "/v1/load_lora_adapter")) == 1


async def test_a_refused_adapter_is_refused_and_may_be_tried_again() -> None:
    async with scripted() as script, client_of(script) as client:
        script.json("/v1/load_lora_adapter", {"error": {"message": "rank", "code": "RANK_TOO_LARGE"}}, 422)
        assert (await failing(client.ensure(ONE, FOLDER))).code is ErrorCode.UNSUPPORTED
        script.json("/v1/load_lora_adapter", "ok")
        await client.ensure(ONE, FOLDER)


async def test_an_engine_that_started_anew_is_told_again() -> None:
    async with scripted() as script, client_of(script) as client:
        script.json("/v1/load_lora_adapter", "ok")
        script.json("/v1/unload_lora_adapter", "ok")
        for artifact in (ONE, TWO):
            await client.ensure(artifact, FOLDER)
        forgot = web.json_response({"error": {"message": "who?", "code": "ADAPTER_NOT_FOUND"}}, status=404)
        script.stream(COMPLETIONS, token(1, finish="stop"), DONE)
        answer, first = script.answers[COMPLETIONS], [forgot]

        async def once(request: web.Request) -> web.StreamResponse:
            return first.pop() if first else await answer(request)

        script.answers[COMPLETIONS] = once
        assert len(await all_of(client, mix=BOTH)) == 1
        assert len(asked_for(script, "/v1/load_lora_adapter")) == 4
        await client.unload(ONE)
        await client.unload(TWO)
        first.append(web.json_response({"error": {"message": "who?", "code": "ADAPTER_NOT_FOUND"}}, status=404))
        assert (await failing(all_of(client, mix=BOTH))).code is ErrorCode.ADAPTER_NOT_FOUND


async def test_names_are_bounded_and_the_longest_unused_goes() -> None:
    async with scripted() as script:
        script.json("/v1/load_lora_adapter", "ok")
        script.json("/v1/unload_lora_adapter", "ok")
        async with EngineClient(Channel(url=script.url), max_adapters=2) as client:
            for number in (1, 2, 1, 3):
                await client.ensure(bytes([number]) * 32, FOLDER)
    assert asked_for(script, "/v1/unload_lora_adapter") == [{"lora_name": engine_name(TWO)}]


async def test_loaded_lists_artifacts_only() -> None:
    async with scripted() as script, client_of(script) as client:
        entries = [{"id": name} for name in (engine_name(ONE), "sql", engine_name(TWO).upper(), 5)]
        script.json("/v1/models", MODELS | {"data": [*MODELS["data"], *entries, "what"]})  # type: ignore[misc]
        assert await client.loaded() == {ONE}


class TestVllm:
    """What differs with a vLLM server: vLLM's own shapes, as a scripted server says them."""

    def version(self) -> dict[str, str]:
        return {"version": "0.32.0"}

    async def test_it_says_less_of_itself(self) -> None:
        async with scripted(self.version()) as script, client_of(script, "vllm") as client:
            info = await client.info()
            assert (info.model, info.version, info.max_model_len) == ("base", "0.32.0", 256)
            assert len(info.digest) == 32

    async def test_mixes_are_refused_before_anything_is_sent(self) -> None:
        async with scripted(self.version()) as script, client_of(script, "vllm") as client:
            for mix in (BOTH, Mix(((ONE, 5_000),))):
                for work in (all_of(client, mix=mix), client.count(body(), mix)):
                    assert (await failing(work)).code is ErrorCode.UNSUPPORTED
            assert (await failing(all_of(client, body(n=2, temperature=0)))).code is ErrorCode.UNSUPPORTED
            assert not asked_for(script, COMPLETIONS)

    async def test_an_adapter_that_is_there_already_is_no_error(self) -> None:
        def told(message: str) -> dict[str, Any]:
            return {"error": {"message": message, "type": "InvalidUserInput", "param": None, "code": 400}}

        async with scripted(self.version()) as script, client_of(script, "vllm") as client:
            script.json("/v1/load_lora_adapter", told("The lora adapter 'x' has already been loaded."), 400)
            await client.ensure(ONE, FOLDER)
            script.json("/v1/load_lora_adapter", told("No adapter found for /secret/path"), 404)
            failed = await failing(client.ensure(TWO, FOLDER))
            assert failed.code is ErrorCode.ADAPTER_NOT_FOUND
            assert "secret" not in failed.message
            script.json("/v1/load_lora_adapter", {"detail": "Not Found"}, 404)
            failed = await failing(client.ensure(TWO, FOLDER))
            assert failed.code is ErrorCode.UNSUPPORTED
            assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in failed.message

    async def test_old_names_of_constraints_become_its_own(self) -> None:
        async with scripted(self.version()) as script, client_of(script, "vllm") as client:
            script.stream(COMPLETIONS, token(1, finish="stop"), DONE)
            await all_of(client, body(guided_choice=["a", "b"]), Mix(((ONE, 10_000),)))
        (asked,) = asked_for(script, COMPLETIONS)
        assert asked["structured_outputs"] == {"choice": ["a", "b"]}
        assert asked["model"] == engine_name(ONE)
        assert "guided_choice" not in asked
