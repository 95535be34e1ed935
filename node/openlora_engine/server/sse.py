"""Server-sent events on one response: begun with the first event, paced by the client, cut off when it stalls."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from ..errors import EngineError
from .reply import SERVER
from .responses import ErrorBody

HEADERS = {
    "Server": SERVER,
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}
WRITE_BUFFER = 32 << 10
"""Bytes held here for a client that lags, beside what the kernel holds; beyond it `send` waits."""


class SseResponse:
    """The events of one response. `send` may be awaited by one task at a time.

    Nothing is sent before the first event: a request that fails earlier is answered with its proper status.
    """

    def __init__(self, request: web.BaseRequest, request_id: str, stall_timeout_s: float) -> None:
        self._request = request
        self._stall_timeout_s = stall_timeout_s
        self.response = web.StreamResponse(headers={**HEADERS, "X-Request-Id": request_id})
        self._encoder = msgspec.json.Encoder()

    @property
    def begun(self) -> bool:
        """Whether the status line has gone out."""
        return self.response.prepared

    async def send(self, *bodies: msgspec.Struct) -> None:
        """Send an event for each body; returns when the client has room for more.

        Raises ConnectionError when the client is gone, or read nothing for the stall timeout.
        """
        await self._write(b"".join(b"data: " + self._encoder.encode(body) + b"\n\n" for body in bodies))

    async def fail(self, error: EngineError) -> None:
        """End a stream that broke: the error as its last event, and no [DONE], so that nobody takes it for whole."""
        await self.send(ErrorBody.of(error))
        await self._end()

    async def done(self) -> None:
        """End a complete stream."""
        await self._write(b"data: [DONE]\n\n")
        await self._end()

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                if not self.response.prepared:
                    await self._begin()
                await self.response.write(data)
                # aiohttp itself waits only after every 64 KiB.
                await self._request.writer.drain()
        except TimeoutError:
            self._cut()
            raise ConnectionResetError("the client reads nothing") from None

    async def _begin(self) -> None:
        if self._request.transport is not None:
            self._request.transport.set_write_buffer_limits(WRITE_BUFFER)
        if self._request.version >= (1, 1):
            self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self.response.write_eof()
        except TimeoutError:
            self._cut()

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
