"""Request bodies to what the engine runs: sampling parameters, adapters, tenant. Pure: no socket, no tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ..errors import Code, EngineError
from ..request import GenerateRequest
from ..sampling.params import SamplingParams
from .backend import MixOptions, ModelCard
from .constraint import constraint
from .requests import ChatBody, CompletionBody, GenerationBody

T = TypeVar("T")

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions; a chat's is what the context leaves."""
MAX_CHOICES_IN_ALL = 128
MAX_NAME_CHARS = 256
DEFAULT_METHOD = "cat"
TENANT_HEADER = "X-OpenLoRA-Tenant"

_PINNED = re.compile(r"(?:.*@)?(?P<digest>sha256:[0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True)
class Target:
    """What a request asks to run on, as `Backend.resolve` takes it."""

    model: str
    adapters: tuple[tuple[str, float], ...]
    method: str
    options: MixOptions


def target(body: GenerationBody, model: ModelCard) -> Target:
    """The base or adapter that `model` and `adapters` name. Raises BAD_REQUEST where they contradict each other.

    `model` is a base name or digest, an adapter's alias or digest, or `base+adapter`, whose adapter may be followed by
    `@digest`: then the digest decides.
    """
    _check_length("model", body.model)
    base, adapter = split_model(body.model, model)
    adapters = tuple((entry.id, entry.weight) for entry in body.adapters or ())
    for name, _ in adapters:
        _check_length("adapters", name)
    if adapters and (adapter is not None or base is None):
        raise EngineError(
            Code.BAD_REQUEST,
            f"model names an adapter and so does adapters: set model to {model.names[0]!r}",
            param="adapters",
        )
    if not adapters and (body.adapter_method is not None or body.adapter_options is not None):
        name = "adapter_method" if body.adapter_method is not None else "adapter_options"
        raise EngineError(Code.BAD_REQUEST, f"{name} needs adapters: name them, or leave it out", param=name)
    options = MixOptions(**msgspec.structs.asdict(body.adapter_options)) if body.adapter_options else MixOptions()
    named = ((adapter, 1.0),) if adapter is not None else adapters
    return Target(body.model if base is None else model.names[0], named, body.adapter_method or DEFAULT_METHOD, options)


def split_model(name: str, model: ModelCard) -> tuple[str | None, str | None]:
    """(base, adapter) of a model field: (base, None), (base, adapter), or (None, None) for an adapter's own name."""
    bases = (*model.names, model.digest)
    if name in bases:
        return name, None
    for base in bases:
        if name.startswith(f"{base}+"):
            adapter = name.removeprefix(f"{base}+")
            match = _PINNED.fullmatch(adapter)
            return base, match["digest"] if match else adapter
    return None, None


def sampling_params(
    body: GenerationBody, num_prompt_tokens: int, model: ModelCard, *, default_max_tokens: int | None
) -> SamplingParams:
    """Sampling as the body asks for it, checked. `default_max_tokens` None is what the context leaves.

    Raises BAD_REQUEST naming the parameter, PROMPT_TOO_LONG where prompt and output exceed the context together.
    """
    params = SamplingParams(
        max_tokens=_max_tokens(body, num_prompt_tokens, model, default_max_tokens),
        temperature=_or(body.temperature, 1.0),
        top_k=0 if body.top_k in (None, -1) else body.top_k,
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        seed=body.seed,
        n=_or(body.n, 1),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=_or(body.min_tokens, 0),
        logit_bias=body.logit_bias or {},
        logprobs=_logprobs(body),
        constraint=constraint(body),
    )
    params.validate(model.vocab_size)
    return params


def generate_requests(
    body: GenerationBody,
    prompts: Sequence[tuple[int, ...]],
    model: ModelCard,
    *,
    response_id: str,
    adapter: str | None,
    tenant: str,
) -> tuple[GenerateRequest, ...]:
    """One request a prompt. `adapter` is what `Backend.resolve` gave. Raises as `sampling_params` does."""
    chat = isinstance(body, ChatBody)
    if _or(body.n, 1) * len(prompts) > MAX_CHOICES_IN_ALL:
        raise EngineError(
            Code.BAD_REQUEST, f"prompts times n exceed {MAX_CHOICES_IN_ALL} choices: send several requests", param="n"
        )
    if isinstance(body, CompletionBody) and body.best_of not in (None, _or(body.n, 1)):
        raise EngineError(Code.UNSUPPORTED, "best_of is not supported: leave it out, and use n", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise EngineError(Code.BAD_REQUEST, "stream_options needs stream: true", param="stream_options")
    _check_length("cache_salt", body.cache_salt or "")
    default = None if chat else COMPLETION_MAX_TOKENS
    return tuple(
        GenerateRequest(
            request_id=response_id if len(prompts) == 1 else f"{response_id}-{index}",
            prompt_token_ids=ids,
            params=sampling_params(body, len(ids), model, default_max_tokens=default),
            adapter=adapter,
            tenant=tenant,
            cache_salt=body.cache_salt or "",
        )
        for index, ids in enumerate(prompts)
    )


def tenant_of(header: str | None, body: GenerationBody) -> str:
    """Whom the request counts for: the X-OpenLoRA-Tenant header, else `user`."""
    if header is None:
        _check_length("user", body.user or "")
        return body.user or ""
    _check_length(TENANT_HEADER, header)
    if not header.isprintable():
        raise EngineError(Code.BAD_REQUEST, f"{TENANT_HEADER} must be printable UTF-8", param=TENANT_HEADER)
    return header


def _max_tokens(body: GenerationBody, num_prompt_tokens: int, model: ModelCard, default: int | None) -> int:
    asked = body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    room = model.max_model_len - num_prompt_tokens
    if asked is None:
        asked = room if default is None else min(default, room)
        if asked < 1:
            raise EngineError(
                Code.PROMPT_TOO_LONG,
                f"the prompt fills the context of {model.max_model_len} tokens: shorten it, or set max_tokens to 0",
            )
    if asked > room:
        raise EngineError(
            Code.PROMPT_TOO_LONG,
            f"{num_prompt_tokens} prompt tokens and max_tokens {asked} exceed the context of {model.max_model_len}: "
            f"shorten the prompt, or set max_tokens to at most {room}",
            param="max_tokens",
        )
    return asked


def _logprobs(body: GenerationBody) -> int | None:
    """Chat asks with a switch and a number, completions with the number alone."""
    if isinstance(body, ChatBody):
        if body.top_logprobs is not None and not body.logprobs:
            raise EngineError(Code.BAD_REQUEST, "top_logprobs needs logprobs: true", param="top_logprobs")
        return body.top_logprobs or 0 if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionBody) else None


def _check_length(name: str, value: str) -> None:
    if len(value) > MAX_NAME_CHARS:
        raise EngineError(Code.BAD_REQUEST, f"{name} is longer than {MAX_NAME_CHARS} characters", param=name)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
