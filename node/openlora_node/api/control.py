"""The control API: what the command line asks a running node, over a Unix socket that its user alone can open.

A command is a method, a path and a coroutine from parameters to a JSON value. The daemon brings the commands; this file
carries them. Parameters come from the JSON body, or from the query of a GET.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from ..protocol.errors import ErrorCode, OpenLoraError
from .answers import Handler, errors_as_json, json_answer, json_body
from .bodies import Bodies

MAX_BODY_BYTES = 64 << 10
BODY_TIMEOUT_S = 10.0

Parameters = Mapping[str, Any]
Run = Callable[[Parameters], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that a running node can be asked. `run` gets the parameters, `{name}` parts of the path included."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    run: Run


def control_app(commands: Iterable[Command]) -> web.Application:
    """The application that answers them."""
    app = web.Application(middlewares=[errors_as_json])
    bodies = Bodies(MAX_BODY_BYTES, BODY_TIMEOUT_S)
    for command in commands:
        app.router.add_route(command.method, command.path, _handler(command.run, bodies))
    return app


def _handler(run: Run, bodies: Bodies) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        given = dict(request.query) if request.method == "GET" else await json_body(request, bodies)
        return json_answer(await run({**given, **request.match_info}))

    return handle


def text_of(parameters: Parameters, name: str, default: str | None = None) -> str:
    """A text among the parameters. Raises MALFORMED naming it."""
    value = parameters.get(name, default)
    if not isinstance(value, str):
        raise OpenLoraError(ErrorCode.MALFORMED, f"{name} is a text")
    return value


def whole_of(
    parameters: Parameters, name: str, default: int | None = None, *, low: int = 0, high: int = 1 << 53
) -> int:
    """A whole number among the parameters, also written as decimal text. Raises MALFORMED naming it."""
    value = parameters.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 80:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OpenLoraError(ErrorCode.MALFORMED, f"{name} is a whole number from {low} to {high}")
    return value
