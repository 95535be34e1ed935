"""POST /v1/chat/completions and /v1/completions: from a body to a response, whole or streamed."""

from __future__ import annotations

import time

from aiohttp import web

from .call import Call
from .chat_shape import ChatShape
from .completion_shape import CompletionShape
from .conversion import TENANT_HEADER, generate_requests, target, tenant_of
from .generation import Generation
from .reply import json_reply
from .requests import ChatBody, CompletionBody, GenerationBody
from .shape import Envelope, Shape
from .sse import SseResponse


async def chat_completions(call: Call) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    async with call.body(ChatBody) as body:
        adapter = await _resolve(call, body)
        prompt = await call.services.prompts.of_conversation(body)
        generation = _generation(call, body, adapter, [prompt])
        streams = bool(body.stream)
    return await _respond(call, generation, streams=streams)


async def completions(call: Call) -> web.StreamResponse:
    """POST /v1/completions."""
    async with call.body(CompletionBody) as body:
        adapter = await _resolve(call, body)
        specials = body.add_special_tokens is not False
        prompts = await call.services.prompts.of_field(body.prompt, add_special_tokens=specials)
        generation = _generation(call, body, adapter, prompts)
        streams = bool(body.stream)
    return await _respond(call, generation, streams=streams)


async def _resolve(call: Call, body: GenerationBody) -> str | None:
    asked = target(body, call.backend.model)
    return await call.backend.resolve(asked.model, asked.adapters, asked.method, asked.options)


def _generation(call: Call, body: GenerationBody, adapter: str | None, prompts: list[tuple[int, ...]]) -> Generation:
    chat = isinstance(body, ChatBody)
    response_id = f"{'chatcmpl' if chat else 'cmpl'}-{call.id}"
    requests = generate_requests(
        body,
        prompts,
        call.backend.model,
        response_id=response_id,
        adapter=adapter,
        tenant=tenant_of(call.request.headers.get(TENANT_HEADER), body),
    )
    params = requests[0].params
    envelope = Envelope(
        id=response_id,
        created=int(time.time()),
        model=body.model,
        adapter=adapter,
        prompts=tuple(prompts),
        n=params.n,
        logprobs=params.logprobs is not None,
        return_token_ids=bool(body.return_token_ids),
        return_timings=bool(body.return_timings),
    )
    tokens = call.services.tokens
    shape: Shape = ChatShape(envelope, tokens) if chat else CompletionShape(envelope, tokens)
    options = body.stream_options
    return Generation(
        call.backend,
        requests,
        envelope,
        shape,
        call.arrived,
        include_usage=bool(options and (options.include_usage or options.continuous_usage_stats)),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )


async def _respond(call: Call, generation: Generation, *, streams: bool) -> web.StreamResponse:
    if not streams:
        return json_reply(await generation.whole())
    events = SseResponse(call.request, call.id, call.services.config.stall_timeout_s)
    await generation.stream(events)
    return events.response
