"""The client and the supervisor with the real engine on a tiny random model: answers, mixes, crashes, the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openlora_node.engineclient import Channel, EngineClient, Mix
from openlora_node.engineclient.command import engine_command
from openlora_node.openai import Body, parse_body
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level
from support.engineclient_engine import MODEL, MODEL_DIGEST, SMALL, Running, Store, make_store, supervised

pytestmark = pytest.mark.slow

HELLO = [{"role": "user", "content": "Who serves the adapters?"}]
LONG = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def socket(store: Store) -> Iterator[Path]:
    """Of an engine that this file's tests share; it runs by itself, as under systemd."""
    path = store.root / "shared.sock"
    config = store.config(socket=str(path))
    command = engine_command(config, config.all_engines[0], store.model, MODEL_DIGEST, SMALL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if "serving on" in line:
                break
        else:
            pytest.fail(f"the engine did not start: {said}")
        yield path
        running.kill()


def body(**fields: Any) -> Body:
    defaults: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    prompt: dict[str, Any] = {} if {"prompt", "messages"} & fields.keys() else {"prompt": "The quick brown fox"}
    return parse_body(json.dumps(defaults | prompt | fields).encode(), 1 << 20)


async def tokens(client: EngineClient, asked: Body, mix: Mix, max_tokens: int | None = 8) -> dict[int, list[int]]:
    """Token ids of each choice; every choice ends for a reason."""
    found: dict[int, list[int]] = {}
    reasons = {}
    async with client.generate(asked, mix, max_tokens=max_tokens, tenant="payer", request_id="r") as chunks:
        async for chunk in chunks:
            found.setdefault(chunk.choice, []).extend(chunk.token_ids)
            reasons[chunk.choice] = chunk.finish_reason
    assert None not in reasons.values()
    return found


def mix_of(store: Store, method: str = "cat", seed: int = 0, **weights: int) -> Mix:
    return Mix(tuple((store.adapters[name], weight) for name, weight in weights.items()), method, seed)


async def ensured(client: EngineClient, store: Store, *names: str) -> None:
    for name in names:
        await client.ensure(store.adapters[name], store.folder(name))


class TestServing:
    """What is asked for is what answers."""

    async def test_base_adapters_mixes_and_seeds_answer_differently_and_repeatably(
        self, store: Store, socket: Path
    ) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            await ensured(client, store, "a", "b", "c")
            mixes = [
                Mix(),
                mix_of(store, a=10_000),
                mix_of(store, b=10_000),
                mix_of(store, a=5_000),
                mix_of(store, a=7_000, b=3_000),
                mix_of(store, "ties", a=7_000, b=3_000),
                mix_of(store, "dare_linear", 1, a=7_000, b=3_000),
                mix_of(store, "dare_linear", 2, a=7_000, b=3_000),
            ]
            asked = body(max_tokens=8)
            first = await asyncio.gather(*(tokens(client, asked, mix) for mix in mixes))
            again = await asyncio.gather(*(tokens(client, asked, mix) for mix in mixes))
            assert first == again
            assert len({tuple(found[0]) for found in first}) == len(mixes)
            assert await client.loaded() >= {store.adapters[name] for name in "abc"}

    async def test_counts_are_the_engines(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            info = await client.info()
            assert (info.model, info.model_digest, info.dtype) == (MODEL, MODEL_DIGEST, "float32")
            chat = body(messages=HELLO, max_tokens=2)
            for asked in (chat, body(), body(prompt=["one", "two more"], n=2), body(prompt=[5, 6, 7])):
                count = await client.count(asked, Mix())
                usage = await self._usage(socket, asked)
                assert count == usage
            long = body(prompt="x " * 400)
            with pytest.raises(OpenLoraError) as refused:
                await client.count(long, Mix())
            assert refused.value.code is ErrorCode.PROMPT_TOO_LONG

    async def _usage(self, socket: Path, asked: Body) -> int:
        """The engine's own count of a prompt, from the usage of a whole response."""
        channel = Channel(socket=socket)
        channel.open()
        path = "/v1/chat/completions" if asked.kind == "chat" else "/v1/completions"
        sent = asked.for_engine(MODEL, max_tokens=2) | {"stream": False}
        answer = json.loads(await channel.post(path, sent))
        await channel.close()
        return int(answer["usage"]["prompt_tokens"])

    async def test_choices_prompts_and_logprobs(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            found = await tokens(client, body(prompt=["a", "b"], n=2, temperature=1, seed=3), Mix())
            assert {choice: len(ids) for choice, ids in found.items()} == dict.fromkeys(range(4), 8)
            asked = body(messages=HELLO, logprobs=True, top_logprobs=2)
            async with client.generate(asked, Mix(), max_tokens=3, tenant="", request_id="") as chunks:
                told = [json.loads(chunk.logprobs)["content"] async for chunk in chunks if chunk.token_ids]
            assert len([entry for part in told for entry in part]) == 3

    async def test_refusals_have_their_codes(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            cases = [
                (body(guided_regex="("), Mix(), ErrorCode.MALFORMED),
                (body(prompt=[10**6]), Mix(), ErrorCode.MALFORMED),
                (body(min_tokens=9), Mix(), ErrorCode.MALFORMED),
                (body(), Mix(((bytes(32), 10_000),)), ErrorCode.ADAPTER_NOT_FOUND),
                (body(), Mix(((bytes(32), 500), (bytes([1]) * 32, 500))), ErrorCode.ADAPTER_NOT_FOUND),
            ]
            for asked, mix, code in cases:
                with pytest.raises(OpenLoraError) as refused:
                    await tokens(client, asked, mix)
                assert refused.value.code is code, refused.value
            with pytest.raises(OpenLoraError) as refused:
                await tokens(client, body(), Mix(), max_tokens=10**6)
            assert refused.value.code is ErrorCode.PROMPT_TOO_LONG
            with pytest.raises(OpenLoraError) as refused:
                await ensured(client, store, "other")
            assert refused.value.code is ErrorCode.UNSUPPORTED
            for outside in (store.model, Path("/etc"), store.root / "artifacts" / ".." / MODEL):
                with pytest.raises(OpenLoraError):
                    await client.ensure(bytes(32), outside)

    async def test_unloaded_means_unknown(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            await ensured(client, store, "c")
            await client.unload(store.adapters["c"])
            await client.unload(store.adapters["c"])
            assert store.adapters["c"] not in await client.loaded()
            with pytest.raises(OpenLoraError) as refused:
                await tokens(client, body(), mix_of(store, c=10_000))
            assert refused.value.code is ErrorCode.ADAPTER_NOT_FOUND
            await ensured(client, store, "c")
            assert await tokens(client, body(), mix_of(store, c=10_000))

    async def test_leaving_early_frees_the_engine(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            async with client.generate(body(**LONG), Mix(), max_tokens=200, tenant="", request_id="") as chunks:
                await anext(chunks)
            async with asyncio.timeout(20):
                while (await client.load()).running:
                    await tokens(client, body(max_tokens=1), Mix(), 1)

    async def test_many_streams_at_once_of_which_one_is_not_read(self, store: Store, socket: Path) -> None:
        async with EngineClient(Channel(socket=socket)) as client:
            async with client.generate(body(**LONG, n=4), Mix(), max_tokens=200, tenant="", request_id="") as chunks:
                await anext(chunks)
                for found in await asyncio.gather(*(tokens(client, body(max_tokens=8), Mix()) for _ in range(40))):
                    assert len(found[0]) == 8
                rest = [chunk async for chunk in chunks]
            assert sum(len(chunk.token_ids) for chunk in rest) > 4 * 190
            assert (await client.load()).tokens_per_second > 0


async def mid_stream(running: Running) -> tuple[Any, Any]:
    """A stream that has given its first token."""
    context = running.client.generate(body(**LONG), Mix(), max_tokens=200, tenant="", request_id="")
    chunks = await context.__aenter__()
    await anext(chunks)
    return context, chunks


@pytest.mark.timeout(300)  # two starts of an engine; on a busy machine each takes half a minute
async def test_a_killed_engine_fails_its_runs_comes_back_with_its_adapters_and_stops_with_grace(
    store: Store,
) -> None:
    async with supervised(store, store.root / "e.sock") as running:
        client, process = running.client, running.process
        await ensured(client, store, "a")
        before = await tokens(client, body(), mix_of(store, a=10_000))
        context, chunks = await mid_stream(running)
        killed = process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(OpenLoraError) as failed:
            async for _ in chunks:
                pass
        assert failed.value.code is ErrorCode.ENGINE_FAILED
        await context.__aexit__(None, None, None)
        with pytest.raises(OpenLoraError) as refused:  # whatever is asked before it is back is told to come again
            await tokens(client, body(), Mix())
        assert refused.value.code is ErrorCode.ENGINE_UNAVAILABLE
        await running.until(lambda health: health.level is Level.DOWN and "signal 9" in health.reason)
        await running.until(lambda health: health.level is Level.UP, after=Level.DOWN)
        assert process.pid != killed
        assert await tokens(client, body(), mix_of(store, a=10_000)) == before

        context, chunks = await mid_stream(running)
        await process.stop()
        await process.stop()
        rest = [chunk async for chunk in chunks]
        assert rest[-1].finish_reason == "length"
        await context.__aexit__(None, None, None)
        async with asyncio.timeout(30):
            await running.task
        assert process.health.reason == "stopped"
        with pytest.raises(OpenLoraError) as refused:
            await tokens(client, body(), Mix())
        assert refused.value.code is ErrorCode.ENGINE_UNAVAILABLE
        assert not (store.root / "e.sock").exists()


async def test_the_engines_own_reason_is_told_where_it_cannot_start(store: Store) -> None:
    with pytest.raises(OpenLoraError, match="--max-lora-rank must be at least 1") as given_up:
        async with supervised(store, store.root / "e.sock", "--max-lora-rank", "0"):
            pass
    assert given_up.value.code is ErrorCode.CONFIG_INVALID
