"""The constraint that a request puts on its output, whichever of the dialects' fields holds it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from ..errors import Code, EngineError
from ..sampling.params import Constraint, ConstraintKind
from .requests import GenerationBody, ResponseFormat, StructuredOutputs, is_null

_REGEX_SPECIALS = re.compile(r"([\\.+*?()|\[\]{}^$])")


def constraint(body: GenerationBody) -> Constraint | None:
    """The one constraint of the output, whichever field holds it. Raises BAD_REQUEST for two."""
    found: list[tuple[str, Constraint]] = []
    if body.response_format is not None and (asked := _response_format(body.response_format)) is not None:
        found.append(("response_format", asked))
    outputs = body.structured_outputs or StructuredOutputs()
    for name, schema in (("guided_json", body.guided_json), ("structured_outputs.json", outputs.json)):
        if not is_null(schema):
            found.append((name, Constraint(ConstraintKind.JSON_SCHEMA, _schema(name, schema))))
    for name, regex in (("guided_regex", body.guided_regex), ("structured_outputs.regex", outputs.regex)):
        if regex is not None:
            found.append((name, Constraint(ConstraintKind.REGEX, regex)))
    for name, choices in (("guided_choice", body.guided_choice), ("structured_outputs.choice", outputs.choice)):
        if choices is not None:
            found.append((name, Constraint(ConstraintKind.REGEX, _alternatives(name, choices))))
    if outputs.json_object:
        found.append(("structured_outputs.json_object", Constraint(ConstraintKind.JSON_OBJECT)))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise EngineError(Code.BAD_REQUEST, f"{names} exclude each other: send one", param=_field(found[1][0]))
    return found[0][1] if found else None


def _response_format(asked: ResponseFormat) -> Constraint | None:
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return Constraint(ConstraintKind.JSON_OBJECT)
    if asked.type != "json_schema":
        raise EngineError(
            Code.UNSUPPORTED, "response_format.type must be text, json_object or json_schema", param="response_format"
        )
    if asked.json_schema is None or is_null(asked.json_schema.schema):
        raise EngineError(
            Code.BAD_REQUEST, "response_format.json_schema.schema is missing: send a schema", param="response_format"
        )
    return Constraint(ConstraintKind.JSON_SCHEMA, _schema("response_format", asked.json_schema.schema))


def _schema(name: str, value: msgspec.Raw) -> str:
    """A schema as JSON text; vLLM's clients also send it as text within a string."""
    text = bytes(value).decode()
    try:
        schema = msgspec.json.decode(text)
        if isinstance(schema, str):
            text, schema = schema, msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError):
        schema = None
    if not isinstance(schema, dict | bool):
        raise EngineError(Code.BAD_REQUEST, f"{name} is not a JSON schema: send an object", param=_field(name))
    return text


def _alternatives(name: str, choices: Sequence[str]) -> str:
    if not choices or not all(choices):
        raise EngineError(Code.BAD_REQUEST, f"{name} needs texts, none of them empty", param=_field(name))
    return "|".join(_REGEX_SPECIALS.sub(r"\\\1", choice) for choice in choices)


def _field(place: str) -> str:
    """The request field that holds `place`."""
    return place.partition(".")[0]
