"""What the values of a request body may be: the engine's bounds, and that fields do not contradict each other. Pure.

What takes the model to judge (token ids against the vocabulary, lengths against the context, whether a schema compiles)
is left to the engine.
"""

from __future__ import annotations

import math
from typing import NoReturn

import msgspec

from ..protocol.errors import ErrorCode
from ..protocol.pipeline import MAX_ADAPTERS, MixMethod
from .errors import BodyError
from .shapes import Chat, Completion, Generation, Message, StructuredOutputs, is_null

MAX_CHOICES = 16
MAX_CHOICES_IN_ALL = 128
MAX_PROMPTS = 64
MAX_NAME_CHARS = 256
MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_LOGIT_BIAS = 1_024
MAX_TOKENS = (1 << 31) - 1
MAX_TOKEN_ID = (1 << 32) - 1
"""Token ids are hashed as 4 bytes each (docs/protocol.md section 3)."""
DENSITY = 0.5
"""The density of every method that drops values, fixed by docs/protocol.md section 4."""
ROLES = frozenset({"system", "developer", "user", "assistant"})
METHODS = frozenset(method.name.lower() for method in MixMethod)


def check(body: Chat | Completion) -> None:
    """Raise BodyError MALFORMED or UNSUPPORTED naming the first field that is out of bounds."""
    _check_sampling(body)
    _check_texts(body)
    _check_adapters(body)
    _check_constraint(body)
    if isinstance(body, Chat):
        _check_chat(body)
    else:
        _check_completion(body)
    if body.stream_options is not None and not body.stream:
        _malformed("stream_options needs stream: true", "stream_options")


def prompts_of(body: Chat | Completion) -> int:
    """How many prompts a body holds: 1, but for a completion with a list of texts or of lists of token ids."""
    if isinstance(body, Chat) or isinstance(body.prompt, str) or (body.prompt and isinstance(body.prompt[0], int)):
        return 1
    return len(body.prompt)


def _check_sampling(body: Chat | Completion) -> None:
    _between("max_tokens", body.max_tokens, 0, MAX_TOKENS)
    _between("temperature", body.temperature, 0, 100)
    _between("top_k", body.top_k, -1, MAX_TOKENS)
    _between("top_p", body.top_p, 0, 1, above=True)
    _between("min_p", body.min_p, 0, 1)
    _between("repetition_penalty", body.repetition_penalty, 0, 100, above=True)
    _between("presence_penalty", body.presence_penalty, -2, 2)
    _between("frequency_penalty", body.frequency_penalty, -2, 2)
    _between("n", body.n, 1, MAX_CHOICES)
    _between("min_tokens", body.min_tokens, 0, MAX_TOKENS)
    _between("seed", body.seed, -(1 << 63), (1 << 64) - 1)
    ids = body.stop_token_ids or ()
    _at_most("stop_token_ids", len(ids), MAX_LOGIT_BIAS, "entries")
    for token_id in ids:
        _between("stop_token_ids", token_id, 0, MAX_TOKEN_ID)
    biases = body.logit_bias or {}
    _at_most("logit_bias", len(biases), MAX_LOGIT_BIAS, "entries")
    for token_id, bias in biases.items():
        _between("logit_bias", token_id, 0, MAX_TOKEN_ID)
        _between("logit_bias", bias, -100, 100)


def _check_texts(body: Generation) -> None:
    for name, value in (("model", body.model), ("user", body.user), ("cache_salt", body.cache_salt)):
        _at_most(name, len(value or ""), MAX_NAME_CHARS, "characters")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    _at_most("stop", len(stops), MAX_STOPS, "entries")
    for stop in stops:
        _between("stop", len(stop), 1, MAX_STOP_CHARS, unit=" characters")


def _check_adapters(body: Generation) -> None:
    entries = body.adapters or []
    _at_most("adapters", len(entries), MAX_ADAPTERS, "entries")
    for entry in entries:
        _between("adapters", len(entry.id), 1, MAX_NAME_CHARS, unit=" characters of an id")
        if not math.isfinite(entry.weight) or entry.weight == 0:
            _malformed("adapters: a weight is a number other than 0", "adapters")
    if body.adapter_method is not None and body.adapter_method not in METHODS:
        _malformed(f"adapter_method must be one of {', '.join(sorted(METHODS))}", "adapter_method")
    given = body.adapter_options
    if given is not None and (
        given.density not in (None, DENSITY)
        or given.majority_sign_method not in (None, "total")
        or given.svd_rank is not None
        or given.seed is not None
    ):
        raise BodyError(
            ErrorCode.UNSUPPORTED, "adapter_options: a pipeline fixes them: leave the field out", "adapter_options"
        )
    if not entries and (body.adapter_method is not None or given is not None):
        name = "adapter_method" if body.adapter_method is not None else "adapter_options"
        _malformed(f"{name} needs adapters: name them, or leave it out", name)


def _check_constraint(body: Generation) -> None:
    asked = body.response_format
    outputs = body.structured_outputs or StructuredOutputs()
    found = [
        name
        for name, there in (
            ("response_format", asked is not None and asked.type != "text"),
            ("guided_json", not is_null(body.guided_json)),
            ("guided_regex", body.guided_regex is not None),
            ("guided_choice", body.guided_choice is not None),
            ("structured_outputs", not is_null(outputs.json)),
            ("structured_outputs", outputs.regex is not None),
            ("structured_outputs", outputs.choice is not None),
            ("structured_outputs", bool(outputs.json_object)),
        )
        if there
    ]
    if len(found) > 1:
        _malformed(f"{' and '.join(found)} exclude each other: send one constraint", found[1])
    if asked is not None and asked.type not in ("text", "json_object", "json_schema"):
        raise BodyError(
            ErrorCode.UNSUPPORTED, "response_format.type must be text, json_object or json_schema", "response_format"
        )
    if (
        asked is not None
        and asked.type == "json_schema"
        and (asked.json_schema is None or is_null(asked.json_schema.schema))
    ):
        _malformed("response_format.json_schema.schema is missing: send a schema", "response_format")


def _check_chat(body: Chat) -> None:
    _between("max_completion_tokens", body.max_completion_tokens, 0, MAX_TOKENS)
    _between("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS)
    if body.top_logprobs is not None and not body.logprobs:
        _malformed("top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        _malformed("messages is empty: send at least one message", "messages")
    if body.continue_final_message and body.add_generation_prompt:
        name = "continue_final_message"
        _malformed(f"{name} and add_generation_prompt exclude each other: set one", name)
    for index, message in enumerate(body.messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: Message, place: str) -> None:
    if message.role not in ROLES:
        allowed = ", ".join(sorted(ROLES))
        raise BodyError(ErrorCode.UNSUPPORTED, f"{place}.role must be one of {allowed}", "messages")
    for name, value in (("tool_calls", message.tool_calls), ("function_call", message.function_call)):
        if not is_null(value) and bytes(value) != b"[]":
            raise BodyError(ErrorCode.UNSUPPORTED, f"{place}.{name} is not supported: leave it out", "messages")
    if message.content is None and message.role != "assistant":
        _malformed(f"{place}.content is missing: send text", "messages")
    for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if part.type != "text":
            raise BodyError(
                ErrorCode.UNSUPPORTED, f"{place}.content[{number}].type must be text: only text is served", "messages"
            )
        if part.text is None:
            _malformed(f"{place}.content[{number}].text is missing: send text", "messages")


def _check_completion(body: Completion) -> None:
    _between("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    n = 1 if body.n is None else body.n
    if body.best_of not in (None, n):
        raise BodyError(ErrorCode.UNSUPPORTED, "best_of is not supported: leave it out, and use n", "best_of")
    if isinstance(body.prompt, list):
        if not body.prompt:
            _malformed("prompt is an empty list: send text or token ids", "prompt")
        if len({type(entry) for entry in body.prompt}) > 1:
            _malformed("prompt mixes texts, token ids and lists: send entries of one kind", "prompt")
        for ids in [body.prompt] if isinstance(body.prompt[0], int) else body.prompt:
            if isinstance(ids, list):
                if not ids:
                    _malformed("prompt holds an empty list: send text or token ids", "prompt")
                for token_id in ids:
                    _between("prompt", token_id if isinstance(token_id, int) else 0, 0, MAX_TOKEN_ID)
    prompts = prompts_of(body)
    _at_most("prompt", prompts, MAX_PROMPTS, "prompts")
    if prompts * n > MAX_CHOICES_IN_ALL:
        _malformed(f"prompts times n exceed {MAX_CHOICES_IN_ALL} choices: send several requests", "n")


def _between(name: str, value: float | None, low: float, high: float, *, above: bool = False, unit: str = "") -> None:
    """`low` itself is excluded when `above`; NaN is outside everything."""
    if value is not None and not ((low < value if above else low <= value) and value <= high):
        _malformed(f"{name} must be {'above' if above else 'from'} {low} to {high}{unit}", name)


def _at_most(name: str, value: int, most: int, unit: str) -> None:
    if value > most:
        _malformed(f"{name} has {value} {unit}: at most {most} are taken", name)


def _malformed(message: str, param: str) -> NoReturn:
    raise BodyError(ErrorCode.MALFORMED, message, param)


def field_names(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The names of the fields that a kind of body has."""
    return frozenset(kind.__struct_encode_fields__)
