"""Connections: how many at once, how long idle ones stay, and what a client is told that speaks no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from aiohttp import web

from ..errors import Code, EngineError
from .responses import ErrorBody

KEEPALIVE_S = 75.0
"""How long a connection may be idle, and how long a request's headers may take."""
LINGER_S = 5.0
"""How long what is left of a refused body is read and dropped, so that the client gets to see the answer."""

_FULL = EngineError(Code.BUSY, "too many connections: try again later", retry_after_s=1)
_NO_HTTP = EngineError(Code.BAD_REQUEST, "this is not well-formed HTTP/1.1 with headers below 8 KiB: correct it")


class Connections(web.Server):
    """aiohttp's low-level server with a bound on connections. Handlers are cancelled when their client is gone."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], max_connections: int
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._max_connections = max_connections

    @property
    def is_full(self) -> bool:
        """Whether the next connection is one too many."""
        return len(self.connections) >= self._max_connections

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            access_log=cast("Any", None),
            auto_decompress=False,
        )


class Connection(web.RequestHandler):
    """One connection of a bounded server."""

    __slots__ = ("_connections",)

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(connections, **options)
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it, or say BUSY and hang up."""
        if self._connections.is_full:
            writer = cast("asyncio.Transport", transport)
            writer.write(_raw_response(_FULL))
            writer.close()
            return
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse; handlers' own errors never come here."""
        response = web.Response(status=status, body=_body(_NO_HTTP), content_type="application/json")
        response.force_close()
        return response


def _body(error: EngineError) -> bytes:
    return msgspec.json.encode(ErrorBody.of(error))


def _raw_response(error: EngineError) -> bytes:
    body = _body(error)
    head = (
        f"HTTP/1.1 {error.code.http_status} Busy\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {error.retry_after_s:g}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
