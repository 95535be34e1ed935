"""Request bodies of strangers: each within its size and time, all together within a budget of memory."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..protocol.errors import ErrorCode, OpenLoraError

TOTAL_BYTES = 64 << 20


class Bodies:
    """All bodies of one door that are being read. Sizes in bytes."""

    def __init__(self, most: int, timeout_s: float, total: int = TOTAL_BYTES) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._free = total

    async def read(self, request: web.BaseRequest) -> bytes:
        """A whole body. Raises FRAME_TOO_LARGE, MALFORMED, UNSUPPORTED for a compressed one, BUSY past the budget.

        What a client announces is not reserved: it costs nothing to announce.
        """
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise OpenLoraError(ErrorCode.UNSUPPORTED, "compressed bodies are not taken: send it as it is")
        self._check_size(request.content_length or 0)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                async for part in request.content.iter_any():
                    size += len(part)
                    self._check_size(size)
                    if len(part) > self._free:
                        raise OpenLoraError(ErrorCode.BUSY, "too many bodies are on their way", retry_after_ms=1000)
                    self._free -= len(part)
                    parts.append(part)
            return b"".join(parts)
        except TimeoutError:
            raise OpenLoraError(ErrorCode.MALFORMED, "the body took too long to arrive: send it again") from None
        except web.RequestPayloadError:
            raise OpenLoraError(ErrorCode.MALFORMED, "the body breaks HTTP's framing: correct the client") from None
        finally:
            self._free += sum(map(len, parts))

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise OpenLoraError(ErrorCode.FRAME_TOO_LARGE, f"the body is larger than {self._most} bytes")
