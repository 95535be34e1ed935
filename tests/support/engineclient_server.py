"""A scripted HTTP server behind the engine's client: answers what a test says, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from openlora_node.engineclient import Channel, EngineClient
from openlora_node.openai import Body, parse_body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NATIVE_VERSION = {
    "version": "1",
    "model": "base",
    "model_digest": "",
    "device": "cpu",
    "dtype": "float32",
    "lora_dtype": "float16",
    "quantization": "none",
    "eos_token_ids": [2],
}
MODELS = {"object": "list", "data": [{"id": "base", "parent": None, "root": "/models/base", "max_model_len": 256}]}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def token(number: int, choice: int = 0, finish: str | None = None) -> bytes:
    """The event of one token of a completion."""
    return event(choices=[{"index": choice, "text": f" {number}", "token_ids": [number], "finish_reason": finish}])


def body(**fields: Any) -> Body:
    """A parsed request: a completion unless it has messages."""
    prompt: dict[str, Any] = {} if "messages" in fields else {"prompt": "x"}
    return parse_body(json.dumps(prompt | fields).encode(), 1 << 20)


@dataclass
class Script:
    """One engine as a test wants it. `asked` holds (path, JSON body) in order; `gone` is set when a stream was cut."""

    answers: dict[str, Handler] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    def json(self, path: str, value: Any, status: int = 200, **headers: str) -> None:
        """Answer a path with JSON."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.json_response(value, status=status, headers=headers)

        self.answers[path] = answer

    def stream(self, path: str, *parts: bytes, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """Answer a path with these bytes as events, each flushed, then what `then` does before the end."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                for part in parts:
                    await response.write(part)
                if then is not None:
                    await then()
            except (ConnectionError, asyncio.CancelledError):
                self.gone.set()
                raise
            return response

        self.answers[path] = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note the request, answer it."""
        data = await request.read()
        self.asked.append((request.path, json.loads(data) if data else None))
        self.headers.append(request.headers)
        return await self.answers[request.path](request)


@asynccontextmanager
async def scripted(version: Any = NATIVE_VERSION) -> AsyncIterator[Script]:
    """A listening script, with the answers that say what the engine is."""
    script = Script()
    script.json("/version", version)
    script.json("/v1/models", MODELS)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    script.url = f"http://{host}:{port}"
    try:
        yield script
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(script: Script, backend: Any = "native", **options: Any) -> AsyncIterator[EngineClient]:
    """A client of a script; options are the channel's."""
    async with EngineClient(Channel(url=script.url, **options), backend) as client:
        yield client
