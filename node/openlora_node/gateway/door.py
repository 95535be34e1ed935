"""The HTTP door: checks before a body is read, bounded bodies and connections, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from ..api.listeners import Full
from ..config.endpoints import HostPort
from ..openai import error_body, retry_after
from ..protocol.errors import ErrorCode, OpenLoraError
from .guard import Guard

MAX_CONNECTIONS = 512
BACKLOG = 128
BODY_TIMEOUT_S = 30.0
SHUTDOWN_S = 5.0
KEEPALIVE_S = 75.0

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(error: OpenLoraError) -> web.Response:
    """An error with its status, its body in OpenAI's shape, and Retry-After where waiting helps."""
    response = web.Response(body=error_body(error), status=error.code.http_status, content_type="application/json")
    if wait := retry_after(error):
        response.headers["Retry-After"] = wait
    if error.code is ErrorCode.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def doorman(guard: Guard, known_paths: frozenset[str]) -> Middleware:
    """The middleware: guard first; every failure leaves as a code, of a fault of ours only the log hears more."""

    @web.middleware
    async def door(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guard.check(request.path, request.headers)
            return await handler(request)
        except OpenLoraError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(OpenLoraError(ErrorCode.FRAME_TOO_LARGE, "the body is larger than this door takes"))
        except web.HTTPException as error:
            if error.status not in (404, 405):
                return error_response(OpenLoraError(ErrorCode.MALFORMED, "this is no request that the gateway serves"))
            told = f"there is no such route; there are {', '.join(sorted(known_paths))}"
            return error_response(OpenLoraError(ErrorCode.NOT_FOUND, told))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            logger.exception("%s failed", request.match_info.handler.__name__)
            return error_response(OpenLoraError(ErrorCode.INTERNAL))

    return door


async def read_body(request: web.Request, most: int) -> bytes:
    """The whole body, within its size and time. Raises FRAME_TOO_LARGE, MALFORMED."""
    if request.content_length is not None and request.content_length > most:
        raise OpenLoraError(ErrorCode.FRAME_TOO_LARGE, f"the body exceeds {most} bytes (limits.max_body)")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OpenLoraError(ErrorCode.UNSUPPORTED, "compressed bodies are not taken: send it as it is")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise OpenLoraError(ErrorCode.MALFORMED, "the body took too long to arrive: send it again") from None


def write_text(path: Path, text: str) -> None:
    """A small private file, replaced in one step. Raises STORAGE_FAILED."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(path)
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, "the gateway's directory cannot be written") from None


def read_text(path: Path) -> str | None:
    """What such a file holds; None where there is none."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class Listening:
    """An application behind a port."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server, url: str) -> None:
        self._runner = runner
        self._server = server
        self.url = url

    async def close(self) -> None:
        """Take no more connections; requests get a moment to end."""
        self._server.close()
        await self._runner.cleanup()


async def listen(app: web.Application, place: HostPort, *, max_connections: int = MAX_CONNECTIONS) -> Listening:
    """Serve an application; port 0 takes a free one. Raises CONFIG_INVALID where the port is taken."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,  # a client that leaves ends its handler, also while nothing is written
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    serve = runner.server
    assert serve is not None

    full = error_body(OpenLoraError(ErrorCode.BUSY, "too many connections are open: close some"))

    def connection() -> asyncio.BaseProtocol:
        return Full(full) if len(serve.connections) >= max_connections else serve()

    try:
        server = await asyncio.get_running_loop().create_server(connection, place.host, place.port, backlog=BACKLOG)
    except OSError:
        await runner.cleanup()
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, f"gateway.listen: {place} is taken by another program, or not ours"
        ) from None
    host, port = server.sockets[0].getsockname()[:2]
    return Listening(runner, server, f"http://{f'[{host}]' if ':' in host else host}:{port}")
