"""A JSON-RPC proxy that misbehaves on purpose: 429, silence, lies. The rest goes to the real node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import ClientSession, web

Lie = Callable[[str, list[Any], Any], Any]
"""(method, params, true result) → result given."""


class RpcProxy:
    """Faults are set from the test: `statuses` answers with these HTTP statuses first, `hang` never answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.statuses: list[int] = []
        self.hang = False
        self.lie: Lie | None = None
        self.seen: list[str] = []
        self.url = ""

    async def __aenter__(self) -> RpcProxy:
        self._session = ClientSession()
        app = web.Application()
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body["method"])
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if self.hang:
            await asyncio.Event().wait()
        async with self._session.post(self._target, json=body) as response:
            answer = json.loads(await response.read())
        if self.lie and "result" in answer:
            answer["result"] = self.lie(body["method"], body["params"], answer["result"])
        return web.json_response(answer)
