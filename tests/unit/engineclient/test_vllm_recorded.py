"""The vLLM dialect against what vLLM 0.32.0 really sent: answers of a CPU server with the demo's pirate, replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from openlora_node.engineclient import EngineClient, Mix
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.engineclient_server import Script, body, client_of, scripted

RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("vllm-0.32.0.json").read_text(encoding="utf-8")
)
PIRATE = bytes([1]) * 32
HELLO = [{"role": "user", "content": "Say hello."}]


def play(script: Script, path: str, name: str = "") -> None:
    """Answer a path with what was recorded under this name."""
    recorded = RECORDED[name or path]

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=recorded["status"], text=recorded["body"])

    script.answers[path] = answer


async def ask(client: EngineClient, mix: Mix, **fields: Any) -> list[Any]:
    asked = body(messages=HELLO, temperature=0, **fields)
    async with client.generate(asked, mix, max_tokens=4, tenant="", request_id="") as chunks:
        return [chunk async for chunk in chunks]


async def test_a_session() -> None:
    async with scripted() as script, client_of(script, "vllm") as client:
        for path in ("/version", "/v1/models", "/metrics"):
            play(script, path)
        info = await client.info()
        assert (info.model, info.version, info.max_model_len) == ("smollm2-135m-instruct", "0.32.0", 1024)
        assert (await client.load()).running == 0
        play(script, "/tokenize", "tokenize")
        assert await client.count(body(messages=HELLO), Mix()) == 33

        for name in ("load", "load again"):
            play(script, "/v1/load_lora_adapter", name)
            await client.ensure(PIRATE, Path(f"/adapters/{name}"))
        play(script, "/v1/load_lora_adapter", "load nothing")
        with pytest.raises(OpenLoraError) as refused:
            await client.ensure(bytes(32), Path("/nowhere"))
        assert refused.value.code is ErrorCode.ADAPTER_NOT_FOUND

        mix = Mix(((PIRATE, 10_000),))
        play(script, "/v1/chat/completions", "chat")
        chunks = await ask(client, mix)
        assert "".join(chunk.text for chunk in chunks).startswith("A")
        assert sum(len(chunk.token_ids) for chunk in chunks) == 4
        assert [chunk.finish_reason for chunk in chunks][-1] == "length"
        play(script, "/v1/chat/completions", "chat with logprobs")
        told = [json.loads(chunk.logprobs)["content"] for chunk in await ask(client, mix) if chunk.logprobs]
        assert sum(map(len, told)) == 2

        play(script, "/v1/completions", "completion")
        both = body(prompt=["a", "b"], temperature=0)
        async with client.generate(both, Mix(), max_tokens=2, tenant="", request_id="") as stream:
            found = [(chunk.choice, len(chunk.token_ids)) async for chunk in stream]
        assert sum(count for choice, count in found if choice == 0) == 2
        assert sum(count for choice, count in found if choice == 1) == 2

        for name in ("unload", "unload again"):
            play(script, "/v1/unload_lora_adapter", name)
            await client.unload(PIRATE)


@pytest.mark.parametrize(
    ("name", "code"), [("too long", "PROMPT_TOO_LONG"), ("unknown", "ADAPTER_NOT_FOUND"), ("bad grammar", "MALFORMED")]
)
async def test_refusals(name: str, code: str) -> None:
    async with scripted() as script, client_of(script, "vllm") as client:
        for path in ("/version", "/v1/models"):
            play(script, path)
        play(script, "/v1/chat/completions", name)
        with pytest.raises(OpenLoraError) as refused:
            await ask(client, Mix())
        assert refused.value.code is ErrorCode(code)
        assert "unclosed" not in refused.value.message
