"""The other end of the control socket: how the command line asks a running node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from ..protocol.errors import ErrorCode, OpenLoraError

TIMEOUT_S = 30.0
NOT_RUNNING = "the node is not running here: start it with `openlora run`"


class ControlClient:
    """Asks the node behind one socket. Methods raise what the node answered; NOT_FOUND where none runs, NODE_LOST."""

    def __init__(self, socket: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=5)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._socket)), timeout=self._timeout, raise_for_status=False
        )
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str | int) -> Any:
        """What the node answers to a question."""
        return await self._ask("GET", path, params={key: str(value) for key, value in query.items()})

    async def post(self, path: str, **body: Any) -> Any:
        """What the node answers to an order."""
        return await self._ask("POST", path, json=body)

    async def put(self, path: str, **body: Any) -> Any:
        """What the node answers to a new value."""
        return await self._ask("PUT", path, json=body)

    async def delete(self, path: str) -> Any:
        """What the node answers to a removal."""
        return await self._ask("DELETE", path)

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            async with self._session.request(method, f"http://node{path}", **options) as answer:
                body = await answer.json(content_type=None)
        except (FileNotFoundError, ConnectionRefusedError, aiohttp.ClientConnectorError):
            raise OpenLoraError(ErrorCode.NOT_FOUND, NOT_RUNNING) from None
        except PermissionError:
            raise OpenLoraError(ErrorCode.DATADIR_UNSAFE, "the node runs as another user: ask as that one") from None
        except (TimeoutError, aiohttp.ClientError, ValueError):
            raise OpenLoraError(ErrorCode.NODE_LOST, "the node did not answer on its control socket") from None
        if answer.status >= 400:
            raise _error_of(body)
        return body


def ask(socket: Path, method: str, path: str, **parameters: Any) -> Any:
    """One question from a program without an event loop."""

    async def once() -> Any:
        async with ControlClient(socket) as client:
            if method == "GET":
                return await client.get(path, **parameters)
            return await client._ask(method, path, json=parameters)

    return asyncio.run(once())


def _error_of(body: object) -> OpenLoraError:
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return OpenLoraError(ErrorCode.INTERNAL, "the node answered with something else than an error of its own")
    name, message = str(found.get("code")), str(found.get("message"))
    code = ErrorCode[name] if name in ErrorCode.__members__ else ErrorCode.INTERNAL
    return OpenLoraError(code, message, retry_after_ms=found.get("retryAfterMs"))
