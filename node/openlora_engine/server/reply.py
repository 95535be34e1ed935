"""Whole responses: structs as JSON, errors as OpenAI's error body, sent within a client's time to read them."""

from __future__ import annotations

import asyncio
import math

import msgspec
from aiohttp import web

from ..errors import Code, EngineError
from .responses import ErrorBody

JSON = "application/json"
TEXT = "text/plain"
SERVER = "openlora-engine"
"""The Server header: no versions."""


def fault() -> EngineError:
    """The error for a bug of ours, which the log shows and the client does not."""
    return EngineError(Code.ENGINE_FAILED, "a fault of the engine: its log tells more")


def json_reply(body: msgspec.Struct, status: int = 200) -> web.Response:
    """A struct as the response's body."""
    return web.Response(status=status, body=msgspec.json.encode(body), content_type=JSON)


def error_reply(error: EngineError) -> web.Response:
    """The response for an error; Retry-After, in whole seconds, where waiting helps."""
    response = json_reply(ErrorBody.of(error), error.code.http_status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.code is Code.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def send_reply(request: web.BaseRequest, response: web.StreamResponse, stall_timeout_s: float) -> None:
    """Send a whole response; a client that is gone is no error, one that reads nothing for long is cut off."""
    response.headers["Server"] = SERVER
    try:
        async with asyncio.timeout(stall_timeout_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        return
