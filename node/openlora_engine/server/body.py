"""Reading request bodies: capped in size and time, and all together within one budget of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from ..errors import Code, EngineError

RETRY_AFTER_S = 1.0


class Bodies:
    """All request bodies of a server. At most `max_memory` bytes of them are held at once."""

    def __init__(self, max_size: int, max_memory: int, timeout_s: float) -> None:
        self._max_size = max_size
        self._free = max_memory
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def read(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body, counted until the block is left.

        Raises BODY_TOO_LARGE, before reading where the length is declared; REQUEST_TIMEOUT; BUSY when the budget is
        spent; UNSUPPORTED for a compressed body, whose size nobody knows beforehand.
        """
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise EngineError(Code.UNSUPPORTED, "compressed bodies are not supported: send it as it is")
        self._check_size(request.content_length or 0)
        parts: list[bytes] = []
        try:
            await self._collect(request, parts)
            yield b"".join(parts)
        finally:
            self._free += sum(map(len, parts))

    async def _collect(self, request: web.BaseRequest, parts: list[bytes]) -> None:
        """Read into `parts`. An announced length is not reserved: it costs the client nothing to announce."""
        size = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                await _continue(request)
                async for part in request.content.iter_any():
                    size += len(part)
                    self._check_size(size)
                    self._hold(len(part))
                    parts.append(part)
        except TimeoutError:
            raise EngineError(
                Code.REQUEST_TIMEOUT, f"the body did not arrive within {self._timeout_s:g} s: send it faster"
            ) from None
        except web.RequestPayloadError:
            raise EngineError(Code.BAD_REQUEST, "the body breaks HTTP's framing: correct the client") from None

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise EngineError(
                Code.BODY_TOO_LARGE,
                f"the body exceeds {self._max_size} bytes: send less, or have --max-body-size raised",
            )

    def _hold(self, size: int) -> None:
        if size > self._free:
            raise EngineError(
                Code.BUSY, "too many request bodies are in flight: try again later", retry_after_s=RETRY_AFTER_S
            )
        self._free -= size


async def _continue(request: web.BaseRequest) -> None:
    """Tell a client that asked first (curl does, for large bodies) to go on."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Else aiohttp would believe that the response has begun.
        request.writer.output_size = 0
