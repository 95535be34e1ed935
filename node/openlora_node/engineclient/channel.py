"""HTTP to one engine over a Unix socket or a URL: pools, bounds, time-outs; every failure is an OpenLoraError."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError
from .failures import DEFAULT_RETRY_MS, broken, failure, unavailable

MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is no stream; a list of 100,000 adapters fits."""
READ_BUFFER = 32 << 10
"""Twice as many bytes are held for a stream whose consumer lags; then its socket is read no further."""
ATTEMPTS = 2
"""A pooled connection may have died unseen: what got no byte of an answer is sent again once."""
END_S = 1.0
KEEP_ALIVE_S = 30.0
"""Less than engines keep idle connections, which is 75 s."""


class Stream:
    """A streamed response that has begun."""

    def __init__(self, response: aiohttp.ClientResponse, silence_s: float) -> None:
        self._content = response.content
        self._silence_s = silence_s

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises ENGINE_FAILED where the stream breaks or stays silent too long."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._content.readany()
        except TimeoutError:
            raise broken(f"the engine was silent for {self._silence_s:g} s") from None
        except (aiohttp.ClientError, OSError):
            raise broken() from None

    async def finish(self) -> None:
        """Take the end of a stream whose last event came, so that its connection can serve again."""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(END_S):
                while await self._content.readany():
                    pass


class Channel:
    """The connections to one engine. Streams and short calls have pools of their own: neither waits for the other.

    `connect_s` bounds the wait for a connection, `call_s` a whole short call, `silence_s` the wait for a stream's next
    bytes, all in seconds.
    """

    def __init__(
        self,
        *,
        socket: Path | None = None,
        url: str | None = None,
        api_key: str | None = None,
        max_streams: int = 960,
        max_calls: int = 32,
        connect_s: float = 10.0,
        call_s: float = 60.0,
        silence_s: float = 300.0,
    ) -> None:
        if (socket is None) == (url is None):
            raise ValueError("an engine has either a socket or a url")
        self._base = "http://engine" if url is None else url.rstrip("/").removesuffix("/v1")
        self._socket = socket
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._limits = (max_streams, max_calls)
        self._connect_s, self._call_s, self._silence_s = connect_s, call_s, silence_s
        self._sessions: tuple[aiohttp.ClientSession, ...] = ()

    def open(self) -> None:
        """Make the pools, in the running loop; no connection yet."""
        self._sessions = tuple(self._pool(limit) for limit in self._limits)

    async def close(self) -> None:
        """Close all connections; streams that run break."""
        for session in self._sessions:
            await session.close()

    async def get(self, path: str, *, within_s: float | None = None) -> bytes:
        """The body of a successful GET. Raises as `failure` maps it; ENGINE_UNAVAILABLE without an answer in time."""
        return _success(*await self._exchange("GET", path, None, within_s))

    async def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """The body of a successful POST of JSON. Raises as `get`."""
        return _success(*await self._exchange("POST", path, body, None))

    async def try_get(self, path: str, *, within_s: float | None = None) -> tuple[int, bytes]:
        """Status and body of a GET whose refusals the caller judges. Raises ENGINE_UNAVAILABLE."""
        status, answer, _ = await self._exchange("GET", path, None, within_s)
        return status, answer

    async def try_post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of a POST whose refusals the caller judges. Raises ENGINE_UNAVAILABLE."""
        status, answer, _ = await self._exchange("POST", path, body, None)
        return status, answer

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[Stream]:
        """A streamed response. Leaving the block closes its connection, unless it was read to its end.

        Raises as `failure` maps it; ENGINE_UNAVAILABLE where nobody listens, BUSY where no connection came free.
        """
        data = msgspec.json.encode(body)
        response = await self._begin(path, data, {"Content-Type": "application/json", **headers})
        try:
            if response.status != 200:
                raise await _refusal(response)
            yield Stream(response, self._silence_s)
        finally:
            response.close()

    def _session(self, place: int) -> aiohttp.ClientSession:
        """A pool. Raises ENGINE_UNAVAILABLE once all is closed: what still runs at the end of a daemon may ask."""
        if not self._sessions or self._sessions[place].closed:
            raise unavailable()
        return self._sessions[place]

    async def _begin(self, path: str, data: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        session = self._session(0)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_s)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self._silence_s):
                    return await session.post(self._base + path, data=data, headers=headers, timeout=timeout)
            except aiohttp.ConnectionTimeoutError:
                raise OpenLoraError(ErrorCode.BUSY, retry_after_ms=DEFAULT_RETRY_MS) from None
            except TimeoutError:
                raise broken("the engine did not begin to answer in time") from None
            except aiohttp.ServerDisconnectedError:
                if attempt == ATTEMPTS:
                    raise unavailable() from None
            except (aiohttp.ClientError, OSError):
                raise unavailable() from None
        raise AssertionError("unreachable")

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, within_s: float | None
    ) -> tuple[int, bytes, str | None]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        session = self._session(1)
        timeout = aiohttp.ClientTimeout(total=within_s or self._call_s, connect=self._connect_s)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with session.request(
                    method, self._base + path, data=data, headers=headers, timeout=timeout
                ) as response:
                    return response.status, await _whole(response), response.headers.get("Retry-After")
            except aiohttp.ServerDisconnectedError:
                if attempt == ATTEMPTS:
                    raise unavailable() from None
            except (TimeoutError, aiohttp.ClientError, OSError):
                raise unavailable() from None
        raise AssertionError("unreachable")

    def _pool(self, limit: int) -> aiohttp.ClientSession:
        connector = (
            aiohttp.TCPConnector(limit=limit, keepalive_timeout=KEEP_ALIVE_S)
            if self._socket is None
            else aiohttp.UnixConnector(str(self._socket), limit=limit, keepalive_timeout=KEEP_ALIVE_S)
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            read_bufsize=READ_BUFFER,
            trust_env=False,
        )


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer that is no stream. Raises ENGINE_FAILED beyond the bound."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise broken("the engine's answer is too large")
        parts.append(part)
    return b"".join(parts)


async def _refusal(response: aiohttp.ClientResponse) -> OpenLoraError:
    """The error of a stream that did not begin."""
    try:
        async with asyncio.timeout(END_S):
            body = await _whole(response)
    except (TimeoutError, aiohttp.ClientError, OSError):
        body = b""
    return failure(response.status, body, response.headers.get("Retry-After"))


def _success(status: int, body: bytes, retry_after: str | None) -> bytes:
    if status != 200:
        raise failure(status, body, retry_after)
    return body
