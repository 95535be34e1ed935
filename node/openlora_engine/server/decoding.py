"""Body bytes to request structs: UTF-8, JSON, fields, types, each with an error that names the place."""

from __future__ import annotations

import re
from functools import cache
from typing import TypeVar

import msgspec

from ..errors import Code, EngineError
from .fields import check_fields

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `(?P<place>[^`]*)`(?: in `(?P<parent>[^`]*)`)?)?", re.DOTALL)

_LONGEST_PROBLEM = 300
"""Characters of a message that may quote what the client sent."""


def decode(body: bytes, kind: type[T]) -> T:
    """The body as `kind`. Raises BAD_REQUEST or UNSUPPORTED with `param` set where a field is at fault."""
    fields = _fields(body)
    check_fields(fields, _names_of(kind))
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


@cache
def _names_of(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(kind.__struct_encode_fields__)


def field_names(body: bytes) -> frozenset[str]:
    """The names of the body's fields, for a route that takes several shapes. Raises as `decode`."""
    return frozenset(_fields(body))


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The body's fields, undecoded, of a body that is valid JSON throughout."""
    try:
        body.decode("utf-8")
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UnicodeDecodeError as error:
        raise EngineError(Code.BAD_REQUEST, f"the body is not UTF-8 (byte {error.start}): send UTF-8 JSON") from None
    except RecursionError:
        raise EngineError(Code.BAD_REQUEST, "the body is nested too deeply: flatten it") from None
    except msgspec.ValidationError:
        raise EngineError(Code.BAD_REQUEST, "the body must be a JSON object") from None
    except msgspec.DecodeError:
        raise EngineError(Code.BAD_REQUEST, "the body is not valid JSON: send a JSON object") from None


def _invalid(message: str) -> EngineError:
    """msgspec's "Expected `int`, got `str` - at `$.n`" as "n: expected `int`, got `str`"."""
    match = _PLACE.fullmatch(message)
    assert match is not None
    problem, place = match["problem"], (match["parent"] or match["place"] or "$").removeprefix("$").removeprefix(".")
    problem = problem[:1].lower() + problem[1:_LONGEST_PROBLEM]
    if match["parent"]:
        problem = f"{match['place']}: {problem}"
    param = re.split(r"[.\[]", place, maxsplit=1)[0] or None
    return EngineError(Code.BAD_REQUEST, f"{place}: {problem}" if place else problem, param=param)
