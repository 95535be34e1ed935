"""The official `openai` client, unmodified, against the server: whole and streamed, both APIs, every extra."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from openlora_engine.errors import Code, EngineError
from openlora_engine.request import FinishReason, TokenEvent
from openlora_engine.sampling.params import ConstraintKind
from openlora_engine.server.options import ServerConfig
from openlora_engine.server.serve import serving
from support.engine_backend import ALIAS, BASE, FakeBackend, digest_of, texts
from support.engine_tokenizer import tiny_tokenizer

USER = [{"role": "user", "content": "hello"}]


async def test_chat_whole(server) -> None:
    answer = await server.openai.chat.completions.create(model=BASE, messages=USER, max_tokens=3)
    assert answer.object == "chat.completion"
    assert answer.model == BASE
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", " 0.0 0.1 0.2")
    assert choice.finish_reason == "length"
    [request] = server.backend.requests
    assert request.request_id == answer.id
    assert answer.usage.prompt_tokens == len(request.prompt_token_ids)
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.id.removeprefix("chatcmpl-") == answer._request_id


async def test_chat_streamed_is_chat_whole(server) -> None:
    stream = await server.openai.chat.completions.create(
        model=BASE, messages=USER, max_tokens=5, n=3, stream=True, stream_options={"include_usage": True}
    )
    contents, roles, reasons, usage = {}, {}, {}, None
    async for chunk in stream:
        if not chunk.choices:
            usage = chunk.usage
            continue
        assert chunk.usage is None
        [choice] = chunk.choices
        contents[choice.index] = contents.get(choice.index, "") + (choice.delta.content or "")
        roles.setdefault(choice.index, choice.delta.role)
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    whole = await server.openai.chat.completions.create(model=BASE, messages=USER, max_tokens=5, n=3)
    assert contents == {choice.index: choice.message.content for choice in whole.choices}
    assert roles == dict.fromkeys(range(3), "assistant")
    assert reasons == dict.fromkeys(range(3), "length")
    assert usage == whole.usage


async def test_the_clients_stream_helper_accumulates(server) -> None:
    server.backend.script = texts("one", " and", " two")
    async with server.openai.chat.completions.stream(model=BASE, messages=USER) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "one and two"


async def test_completion_whole(server) -> None:
    answer = await server.openai.completions.create(model=ALIAS, prompt="Once upon", max_tokens=2)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == " 0.0 0.1"
    assert answer.choices[0].finish_reason == "length"
    assert server.backend.requests[0].prompt_token_ids == tuple(tiny_tokenizer()("Once upon").input_ids)


async def test_completion_of_every_kind_of_prompt(server) -> None:
    ids = tiny_tokenizer()("the fox").input_ids
    for prompt in ("the fox", ids, ["the fox", "the fox"], [ids, ids]):
        answer = await server.openai.completions.create(model=BASE, prompt=prompt, max_tokens=2, n=2)
        many = isinstance(prompt[0], list) or prompt == ["the fox", "the fox"]
        assert [choice.index for choice in answer.choices] == list(range(4 if many else 2))
        assert [choice.text for choice in answer.choices] == [" 0.0 0.1", " 1.0 1.1"] * (2 if many else 1)
        assert answer.usage.prompt_tokens == len(ids) * (2 if many else 1)
        assert answer.usage.completion_tokens == len(answer.choices) * 2
    assert {request.prompt_token_ids for request in server.backend.requests} == {tuple(ids)}


async def test_completion_streamed_is_completion_whole(server) -> None:
    stream = await server.openai.completions.create(
        model=BASE, prompt=["a", "b", "c"], max_tokens=6, n=2, logprobs=1, stream=True
    )
    found = {}
    async for chunk in stream:
        [choice] = chunk.choices
        text, tokens, offsets = found.get(choice.index, ("", [], []))
        entries = choice.logprobs
        found[choice.index] = (text + choice.text, tokens + entries.tokens, offsets + entries.text_offset)
    whole = await server.openai.completions.create(model=BASE, prompt=["a", "b", "c"], max_tokens=6, n=2, logprobs=1)
    assert found == {
        choice.index: (choice.text, choice.logprobs.tokens, choice.logprobs.text_offset) for choice in whole.choices
    }


async def test_chat_logprobs(server) -> None:
    answer = await server.openai.chat.completions.create(
        model=BASE, messages=USER, max_tokens=2, logprobs=True, top_logprobs=2
    )
    entry = answer.choices[0].logprobs.content[1]
    token = tiny_tokenizer().decode([301])
    assert (entry.token, entry.logprob, bytes(entry.bytes).decode()) == (token, -0.5, token)
    assert [top.logprob for top in entry.top_logprobs] == [-0.5, -1.5]
    alone = await server.openai.chat.completions.create(model=BASE, messages=USER, max_tokens=1, logprobs=True)
    assert alone.choices[0].logprobs.content[0].top_logprobs == []


async def test_completion_logprobs(server) -> None:
    answer = await server.openai.completions.create(model=BASE, prompt="a", max_tokens=3, logprobs=2)
    found = answer.choices[0].logprobs
    tokens = [tiny_tokenizer().decode([300 + step]) for step in range(3)]
    assert found.tokens == tokens
    assert found.token_logprobs == [-0.5] * 3
    assert found.text_offset == [0, len(tokens[0]), len(tokens[0] + tokens[1])]
    assert [list(top.values()) for top in found.top_logprobs] == [[-0.5, -1.5]] * 3


async def test_every_sampling_field_arrives(server) -> None:
    await server.openai.chat.completions.create(
        model=BASE,
        messages=USER,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        seed=42,
        stop=["END", "\n\n"],
        logit_bias={"17": -100, "18": 5},
        user="alice",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "min_tokens": 2,
            "stop_token_ids": [3],
            "include_stop_str_in_output": True,
            "cache_salt": "pepper",
        },
    )
    [request] = server.backend.requests
    params = request.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (7, 0.5, 0.9, 40, 0.05)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.25, -0.25, 1.1)
    assert (params.seed, params.stop, params.stop_token_ids) == (42, ("END", "\n\n"), (3,))
    assert (params.ignore_eos, params.min_tokens, params.include_stop) == (True, 2, True)
    assert params.logit_bias == {17: -100.0, 18: 5.0}
    assert (request.tenant, request.cache_salt, request.adapter) == ("alice", "pepper", None)


async def test_tenant_header_goes_before_user(server) -> None:
    await server.openai.completions.create(
        model=BASE, prompt="a", max_tokens=1, user="alice", extra_headers={"X-OpenLoRA-Tenant": "bob"}
    )
    assert server.backend.requests[0].tenant == "bob"


async def test_response_formats(server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for asked, kind in (
        ({"type": "json_object"}, ConstraintKind.JSON_OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, ConstraintKind.JSON_SCHEMA),
    ):
        await server.openai.chat.completions.create(model=BASE, messages=USER, max_tokens=1, response_format=asked)
        assert server.backend.requests[-1].params.constraint.kind is kind
    assert json.loads(server.backend.requests[-1].params.constraint.grammar) == schema
    await server.openai.chat.completions.create(
        model=BASE, messages=USER, max_tokens=1, response_format={"type": "text"}
    )
    assert server.backend.requests[-1].params.constraint is None


async def test_models_name_base_and_adapters(server) -> None:
    models = {model.id: model async for model in server.openai.models.list()}
    assert set(models) == {BASE, ALIAS, "law", "sql"}
    assert models[BASE].model_extra["parent"] is None
    assert models["sql"].model_extra["parent"] == BASE
    assert models["sql"].model_extra["root"] == digest_of("sql")
    assert models["sql"].model_extra["tier"] == "host"
    for name in (BASE, ALIAS, "sql", digest_of("sql"), f"{BASE}+sql"):
        assert (await server.openai.models.retrieve(name)).object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        await server.openai.models.retrieve("nobody")
    assert caught.value.code == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    "model",
    ["sql", digest_of("sql"), f"{BASE}+sql", f"{ALIAS}+sql@{digest_of('sql')}", f"{BASE}+{digest_of('sql')}"],
)
async def test_every_way_to_name_an_adapter(server, model: str) -> None:
    answer = await server.openai.completions.create(model=model, prompt="a", max_tokens=1)
    assert server.backend.requests[0].adapter == digest_of("sql")
    assert answer.model_extra["openlora"] == {"adapter": digest_of("sql")}
    assert answer.model == model


async def test_a_mix_by_request(server) -> None:
    adapters = [{"id": "sql", "weight": 0.7}, {"id": "law", "weight": -0.3}]
    answer = await server.openai.completions.create(
        model=BASE,
        prompt="a",
        max_tokens=1,
        extra_body={"adapters": adapters, "adapter_method": "ties", "adapter_options": {"density": 0.5}},
    )
    [(weights, method, options)] = server.backend.mixes
    assert list(weights) == [("sql", 0.7), ("law", -0.3)]
    assert (method, options.density) == ("ties", 0.5)
    assert answer.model_extra["openlora"]["adapter"] == server.backend.requests[0].adapter
    await server.openai.completions.create(
        model=BASE, prompt="a", max_tokens=1, extra_body={"adapters": [{"id": "sql"}]}
    )
    assert server.backend.requests[1].adapter == digest_of("sql")


@pytest.mark.parametrize("streams", [False, True])
async def test_token_ids_and_timings_on_request(server, streams: bool) -> None:
    asked = {"return_token_ids": True, "return_timings": True}
    made = await server.openai.chat.completions.create(
        model="sql", messages=USER, max_tokens=3, stream=streams, extra_body=asked
    )
    chunks = [chunk async for chunk in made] if streams else [made]
    prompt = list(server.backend.requests[0].prompt_token_ids)
    assert [chunk.model_extra["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk.model_extra] == [
        prompt
    ]
    assert [token_id for chunk in chunks for token_id in chunk.choices[0].model_extra["token_ids"]] == [300, 301, 302]
    assert chunks[-1].model_extra["openlora"] == {
        "adapter": digest_of("sql"),
        "timings": [
            {"index": 0, "queue_s": 0.25, "adapter_wait_s": 0.125, "adapter_tier": "host", "prefill_s": 0.5,
             "decode_s": 1.5, "cached_tokens": 3, "preemptions": 1}
        ],
    }  # fmt: skip


async def test_max_tokens_0_evaluates_the_prompt(server) -> None:
    answer = await server.openai.completions.create(model=BASE, prompt="a", max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "length")
    assert answer.usage.completion_tokens == 0
    stream = await server.openai.completions.create(model=BASE, prompt="a", max_tokens=0, stream=True)
    assert [chunk.choices[0].finish_reason async for chunk in stream] == ["length"]


async def test_an_error_before_the_first_token_has_its_status(server) -> None:
    for streams in (False, True):
        server.backend.refusal = EngineError(Code.BUSY, "too many requests wait: try later", retry_after_s=1.2)
        with pytest.raises(openai.RateLimitError) as caught:
            await server.openai.completions.create(model=BASE, prompt="a", stream=streams)
        assert (caught.value.code, caught.value.type) == ("BUSY", "rate_limit_error")
        assert caught.value.response.headers["retry-after"] == "2"


async def test_the_client_retries_when_busy(server) -> None:
    server.backend.refusal = EngineError(Code.BUSY, "too many requests wait: try later", retry_after_s=0.01)
    patient = server.openai.with_options(max_retries=1)

    async def relent(**_: object) -> None:
        server.backend.refusal = None

    patient._sleep_for_retry = relent
    answer = await patient.completions.create(model=BASE, prompt="a", max_tokens=1)
    assert answer.choices[0].text == " 0.0"


async def test_an_error_in_mid_stream_is_the_last_event(server) -> None:
    async def script(request):
        yield TokenEvent(request.request_id, 0, (300,), "so far")
        error = EngineError(Code.OUT_OF_MEMORY, "the step ran out of memory: send a shorter prompt")
        yield TokenEvent(request.request_id, 0, finish_reason=FinishReason.ERROR, error=error)

    server.backend.script = script
    stream = await server.openai.completions.create(model=BASE, prompt="a", stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="ran out of memory") as caught:
        async for chunk in stream:
            seen.append(chunk.choices[0].text)
    assert seen == ["so far"]
    assert caught.value.code == "OUT_OF_MEMORY"
    with pytest.raises(openai.InternalServerError) as whole:
        await server.openai.completions.create(model=BASE, prompt="a")
    assert whole.value.status_code == 507


async def test_over_a_unix_socket(tmp_path) -> None:
    backend = FakeBackend(tiny_tokenizer())
    path = tmp_path / "engine.sock"
    async with serving(backend, ServerConfig(uds=path)) as address:
        assert address == f"unix:{path}"
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            AsyncOpenAI(base_url="http://engine/v1", api_key="-", max_retries=0, http_client=http) as client,
        ):
            stream = await client.chat.completions.create(model=BASE, messages=USER, max_tokens=9, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "".join(f" 0.{step}" for step in range(9))


async def test_stop_reason_and_empty_texts(server) -> None:
    server.backend.script = texts("", "a", "", "b")
    stream = await server.openai.completions.create(model=BASE, prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "ab"
