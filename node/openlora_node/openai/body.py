"""A request body, parsed and checked once: what the door, the gateway and the engine's client must know of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ..protocol.errors import ErrorCode
from .bounds import check, field_names, prompts_of
from .errors import BodyError
from .fields import check_fields
from .shapes import Chat, Completion

Kind = Literal["chat", "completion"]

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions; a chat's is what the context leaves."""

_SHAPES: Mapping[Kind, type[Chat] | type[Completion]] = {"chat": Chat, "completion": Completion}
_OWN = frozenset(
    {"model", "adapters", "adapter_method", "adapter_options", "stream", "stream_options", "max_tokens", "user"}
    | {"max_completion_tokens", "return_token_ids", "return_timings", "best_of", "n"}
)
"""Fields that are set anew for the engine, or not passed on."""
_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `(?P<place>[^`]*)`(?: in `(?P<parent>[^`]*)`)?)?", re.DOTALL)


@dataclass(frozen=True)
class Body:
    """One request body. `raw` holds the served fields that were given (none of them null), as plain JSON values.

    `max_tokens` is a bound on each choice; None asks for what the context leaves. `adapters` are (name or artifact id,
    weight) as the client wrote them: the gateway makes a pipeline of them; for a node the signed pipeline decides.
    """

    kind: Kind
    model: str | None
    max_tokens: int | None
    n: int
    prompts: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: bool
    return_token_ids: bool
    adapters: tuple[tuple[str, float], ...]
    adapter_method: str | None
    user: str | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def logprobs_a_token(self) -> int:
        """Log-probabilities asked for each token, the chosen one's among them; 0 for none."""
        if not self.logprobs:
            return 0
        return 1 + int(self.raw.get("top_logprobs" if self.kind == "chat" else "logprobs") or 0)

    @property
    def choices(self) -> int:
        """All choices of the response: each prompt gives `n`, numbered prompt by prompt."""
        return self.prompts * self.n

    def for_engine(
        self,
        model: str,
        adapters: Sequence[tuple[str, float]] = (),
        method: str = "cat",
        *,
        max_tokens: int | None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """The body to stream from an engine: this one's prompt and sampling, with the model and mix given here.

        `adapters` are (name in the engine, weight) and need `model` to be the base; `seed` is that of the mix, not of
        the sampling. `max_tokens` bounds each choice; None leaves it to the context. Token ids are always asked for,
        usage never: receipts count what arrived.
        """
        body = {name: value for name, value in self.raw.items() if name not in _OWN}
        body |= {"model": model, "stream": True, "return_token_ids": True, "n": self.n}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if adapters:
            body["adapters"] = [{"id": name, "weight": weight} for name, weight in adapters]
            body["adapter_method"] = method
            if seed is not None:
                body["adapter_options"] = {"seed": seed}
        return body


def parse_body(data: bytes, max_bytes: int, kind: Kind | None = None) -> Body:
    """The body that these bytes are. Without `kind`, `messages` makes it a chat and `prompt` a completion.

    Raises BodyError FRAME_TOO_LARGE beyond `max_bytes`; MALFORMED for what is no JSON object, of wrong types, out of
    bounds, contradictory or unknown; UNSUPPORTED for what would change the output and is not served.
    `param` is the field.
    """
    if len(data) > max_bytes:
        raise BodyError(ErrorCode.FRAME_TOO_LARGE, f"the body has {len(data)} bytes: send at most {max_bytes}")
    fields = _fields(data)
    kind = kind or _kind(fields)
    shape = _SHAPES[kind]
    served = field_names(shape)
    check_fields(fields, served)
    try:
        given = msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    check(given)
    try:
        raw = {name: msgspec.json.decode(value) for name, value in fields.items() if name in served}
    except msgspec.ValidationError as error:  # a number beyond any, where the shape takes every JSON value
        raise _invalid(str(error)) from None
    return _body(kind, given, {name: value for name, value in raw.items() if value is not None})


def _body(kind: Kind, given: Chat | Completion, raw: dict[str, Any]) -> Body:
    options = given.stream_options
    if isinstance(given, Chat):
        asked = given.max_tokens if given.max_completion_tokens is None else given.max_completion_tokens
        logprobs = bool(given.logprobs)
    else:
        asked = COMPLETION_MAX_TOKENS if given.max_tokens is None else given.max_tokens
        logprobs = given.logprobs is not None
    return Body(
        kind=kind,
        model=given.model,
        max_tokens=asked,
        n=1 if given.n is None else given.n,
        prompts=prompts_of(given),
        stream=bool(given.stream),
        include_usage=bool(options and (options.include_usage or options.continuous_usage_stats)),
        continuous_usage=bool(options and options.continuous_usage_stats),
        logprobs=logprobs,
        return_token_ids=bool(given.return_token_ids),
        adapters=tuple((entry.id, entry.weight) for entry in given.adapters or ()),
        adapter_method=given.adapter_method,
        user=given.user,
        raw=raw,
    )


def _kind(fields: Mapping[str, msgspec.Raw]) -> Kind:
    chat, completion = "messages" in fields, "prompt" in fields
    if chat is completion:
        problem = "both messages and prompt" if chat else "neither messages nor prompt"
        raise BodyError(ErrorCode.MALFORMED, f"the body has {problem}: send one of them", "messages")
    return "chat" if chat else "completion"


def _fields(data: bytes) -> dict[str, msgspec.Raw]:
    """The body's fields, undecoded, of a body that is valid JSON throughout."""
    try:
        data.decode("utf-8")
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except UnicodeDecodeError as error:
        problem = f"the body is not UTF-8 (byte {error.start}): send UTF-8 JSON"
    except RecursionError:
        problem = "the body is nested too deeply: flatten it"
    except msgspec.ValidationError:
        problem = "the body must be a JSON object"
    except msgspec.DecodeError:
        problem = "the body is not valid JSON: send a JSON object"
    raise BodyError(ErrorCode.MALFORMED, problem)


def _invalid(message: str) -> BodyError:
    """msgspec's "Expected `int`, got `str` - at `$.n`" as "n: expected `int`, got `str`"."""
    match = _PLACE.fullmatch(message)
    assert match is not None
    problem, place = match["problem"], (match["parent"] or match["place"] or "$").removeprefix("$").removeprefix(".")
    problem = problem[:1].lower() + problem[1:]
    if match["parent"]:
        problem = f"{match['place']}: {problem}"
    param = re.split(r"[.\[]", place, maxsplit=1)[0] or None
    return BodyError(ErrorCode.MALFORMED, f"{place}: {problem}" if place else problem, param)
