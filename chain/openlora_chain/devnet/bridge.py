"""JSON-RPC over loopback HTTP for the embedded chain. One worker thread owns the chain; only local callers are served.

Any web page can make a browser post to 127.0.0.1, and a DNS name can be made to point there. Hence the Host header must
name loopback, an Origin header is refused, and the content type must be one that a page cannot send unasked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from ..errors import ChainError, ChainErrorCode
from .methods import MethodError, Methods

LOOPBACK = "127.0.0.1"
MAX_BODY = 2 << 20
MAX_BATCH = 100

Answer = Callable[[str, list[Any]], Awaitable[Any]]


class Bridge:
    """The HTTP server in front of `methods`. `port` 0 picks a free one."""

    def __init__(self, methods: Methods, worker: ThreadPoolExecutor, port: int = 0) -> None:
        self._methods = methods
        self._worker = worker
        self._port = port
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; returns the URL. Raises ChainError DEVNET_RUNNING when the port is taken."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, self._port)
        try:
            await site.start()
        except OSError:
            await self.close()
            raise ChainError(ChainErrorCode.DEVNET_RUNNING, f"port {self._port} is taken: choose another") from None
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.Response:
        if not is_loopback_host(request.headers.get("Host", "")) or "Origin" in request.headers:
            return web.Response(status=403, text="only programs on this machine may use the devnet\n")
        if request.content_type != "application/json":
            return web.Response(status=415, text="send application/json\n")
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError):
            return web.json_response(_error(None, -32700, "the body is no JSON"))
        if isinstance(body, list):
            if not 0 < len(body) <= MAX_BATCH:
                return web.json_response(_error(None, -32600, f"a batch has 1 to {MAX_BATCH} calls"))
            return web.json_response([await self._answer(call) for call in body])
        return web.json_response(await self._answer(body))

    async def _answer(self, call: Any) -> dict[str, Any]:
        if not isinstance(call, dict) or not isinstance(call.get("method"), str):
            return _error(None, -32600, "a call is an object with a method")
        identity, params = call.get("id"), call.get("params") or []
        if not isinstance(params, list):
            return _error(identity, -32602, "params is an array")
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(self._worker, self._methods, call["method"], params)
        except MethodError as error:
            return {"jsonrpc": "2.0", "id": identity, "error": error.body}
        return {"jsonrpc": "2.0", "id": identity, "result": result}


def is_loopback_host(header: str) -> bool:
    """Whether a Host header names this machine: `localhost` or a loopback address, with or without a port."""
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _error(identity: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "error": {"code": code, "message": message}}
