"""What every HTTP door has in common: bounded bodies, JSON answers, errors by their codes, no text of ours leaked."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from ..protocol.errors import ErrorCode, OpenLoraError
from .bodies import Bodies

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_answer(body: object, status: int = 200) -> web.Response:
    """A JSON document, ASCII only."""
    return web.Response(text=json.dumps(body) + "\n", status=status, content_type="application/json", charset="utf-8")


def error_body(error: OpenLoraError) -> dict[str, Any]:
    """The JSON form of an error, as docs/protocol.md has it."""
    body: dict[str, Any] = {
        "code": error.code.value, "message": error.message, "retryable": error.code.retryable,
    }  # fmt: skip
    if error.retry_after_ms is not None:
        body["retryAfterMs"] = error.retry_after_ms
    if error.alternatives:
        body["alternatives"] = [f"0x{node.hex()}" for node in error.alternatives]
    return {"error": body}


def error_answer(error: OpenLoraError) -> web.Response:
    """The HTTP form of an error."""
    answer = json_answer(error_body(error), error.code.http_status)
    if error.retry_after_ms is not None:
        answer.headers["Retry-After"] = str(max(1, -(-error.retry_after_ms // 1000)))
    return answer


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure leaves as a code; of what is a fault of ours only the log hears more."""
    try:
        return await handler(request)
    except OpenLoraError as error:
        return error_answer(error)
    except web.HTTPException as error:
        code = ErrorCode.NOT_FOUND if error.status in {404, 405} else ErrorCode.MALFORMED
        answer = json_answer(error_body(OpenLoraError(code, f"no such route here: {request.method}")), error.status)
        if error.status == 413:
            answer = error_answer(OpenLoraError(ErrorCode.FRAME_TOO_LARGE, "the body is larger than this door takes"))
        return answer
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.match_info.route.name or "a route")
        return error_answer(OpenLoraError(ErrorCode.INTERNAL))


async def json_body(request: web.Request, bodies: Bodies) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty one. Raises as `Bodies.read`, and MALFORMED."""
    data = await bodies.read(request)
    if not data:
        return {}
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise OpenLoraError(ErrorCode.MALFORMED, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise OpenLoraError(ErrorCode.MALFORMED, "the body is a JSON object")
    return body
