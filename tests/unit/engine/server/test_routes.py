"""The routes beside completions: adapters, tokens, health, metrics, version."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from openlora_engine.errors import Code
from openlora_engine.server.backend import HealthState
from support.engine_backend import BASE, digest_of
from support.engine_tokenizer import TURN, tiny_tokenizer
from support.engine_wire import Answer, ask, get, post


async def send(server, path: str, **body: object) -> Answer:
    return await ask(server.address, post(path, body))


async def test_an_adapter_is_loaded_served_and_unloaded(server) -> None:
    loaded = await send(server, "/v1/load_lora_adapter", lora_name="new", lora_path="folder", base_model_name=BASE)
    assert (loaded.status, loaded.body) == (200, b"Success: LoRA adapter 'new' added successfully.")
    answer = await send(server, "/v1/completions", model="new", prompt="a", max_tokens=1)
    assert answer.json["openlora"]["adapter"] == digest_of("newfolder")
    assert "new" in [model["id"] for model in (await ask(server.address, get("/v1/models"))).json["data"]]
    gone = await send(server, "/v1/unload_lora_adapter", lora_name="new", lora_int_id=1)
    assert (gone.status, gone.body) == (200, b"Success: LoRA adapter 'new' removed successfully.")
    missing = await send(server, "/v1/completions", model="new", prompt="a")
    assert (missing.status, missing.error["code"]) == (404, "MODEL_NOT_FOUND")


async def test_a_name_is_replaced_only_in_place(server) -> None:
    taken = await send(server, "/v1/load_lora_adapter", lora_name="sql", lora_path="other")
    assert (taken.status, taken.error["code"]) == (409, "ADAPTER_NAME_TAKEN")
    assert server.backend.cards["sql"].digest == digest_of("sql")
    assert (
        await send(server, "/v1/load_lora_adapter", lora_name="sql", lora_path="other", load_inplace=True)
    ).status == 200
    assert server.backend.cards["sql"].digest == digest_of("sqlother")


async def test_pins(server) -> None:
    assert (await send(server, "/v1/load_lora_adapter", lora_name="p", lora_path="f", pinned=True)).status == 200
    assert server.backend.cards["p"].pinned
    assert (await send(server, "/v1/unpin_lora_adapter", lora_name="p")).status == 200
    assert not server.backend.cards["p"].pinned
    assert (await send(server, "/v1/pin_lora_adapter", lora_name="p")).status == 200
    assert (await ask(server.address, get("/v1/models/p"))).json["pinned"] is True
    assert (await send(server, "/v1/pin_lora_adapter", lora_name="nobody")).status == 404


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"lora_path": "broken"}, Code.ADAPTER_INVALID),
        ({"lora_path": ""}, Code.BAD_REQUEST),
        ({"lora_path": "a\0b"}, Code.BAD_REQUEST),
        ({"lora_path": "x" * 5_000}, Code.BAD_REQUEST),
        ({"lora_path": None}, Code.BAD_REQUEST),
        ({"lora_name": ""}, Code.BAD_REQUEST),
        ({"lora_name": "x" * 257}, Code.BAD_REQUEST),
        ({"lora_name": "a b"}, Code.BAD_REQUEST),
        ({"lora_name": "a@b"}, Code.BAD_REQUEST),
        ({"lora_name": "a\n"}, Code.BAD_REQUEST),
        ({"lora_name": digest_of("x")}, Code.BAD_REQUEST),
        ({"lora_name": BASE}, Code.ADAPTER_NAME_TAKEN),
        ({"lora_name": f"{BASE}+x"}, Code.ADAPTER_NAME_TAKEN),
        ({"base_model_name": "other"}, Code.MODEL_NOT_FOUND),
        ({"is_3d_lora_weight": True}, Code.BAD_REQUEST),
    ],
)
async def test_adapters_that_are_not_loaded(server, fields: dict, code: Code) -> None:
    answer = await send(server, "/v1/load_lora_adapter", **({"lora_name": "new", "lora_path": "folder"} | fields))
    assert (answer.status, answer.error["code"]) == (code.http_status, code.value)
    assert set(server.backend.cards) == {"law", "sql"}


async def test_tokens_of_text_and_back(server) -> None:
    answer = await send(server, "/tokenize", prompt="the fox", return_token_strs=True)
    ids = tiny_tokenizer()("the fox").input_ids
    assert answer.json["tokens"] == ids
    assert (answer.json["count"], answer.json["max_model_len"]) == (len(ids), 256)
    assert "".join(answer.json["token_strs"]) == "the fox"
    back = await send(server, "/detokenize", tokens=ids, model="sql")
    assert back.json == {"prompt": "the fox"}


async def test_tokens_of_a_conversation_are_what_a_chat_is_served_with(server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = await send(server, "/tokenize", model=BASE, messages=messages)
    assert tiny_tokenizer().decode(answer.json["tokens"]).startswith(TURN)
    await send(server, "/v1/chat/completions", model=BASE, messages=messages, max_tokens=1)
    assert answer.json["tokens"] == list(server.backend.requests[0].prompt_token_ids)


async def test_tokens_refused(server) -> None:
    assert (await send(server, "/tokenize", prompt="a", model="nobody")).error["code"] == "MODEL_NOT_FOUND"
    assert (await send(server, "/detokenize", tokens=[512])).error["code"] == "BAD_REQUEST"
    assert (await send(server, "/detokenize", tokens=[1] * 257)).error["code"] == "PROMPT_TOO_LONG"
    assert (await send(server, "/detokenize", tokens=[])).json == {"prompt": ""}
    assert (await send(server, "/tokenize", prompt="a", messages=[])).error["code"] == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("state", "status"), [(HealthState.OK, 200), (HealthState.DRAINING, 503), (HealthState.FAILED, 503)]
)
async def test_health(server, state: HealthState, status: int) -> None:
    server.backend.state = state
    answer = await ask(server.address, get("/health"))
    assert (answer.status, answer.json["status"]) == (status, state.value)


async def test_metrics_count_what_was_served_and_refused(server) -> None:
    await send(server, "/v1/completions", model="sql", prompt="a", max_tokens=3)
    await send(server, "/v1/completions", model="nobody", prompt="a")
    answer = await ask(server.address, get("/metrics"))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    assert 'openlora:generation_tokens_total{model_name="tiny-base"} 3.0' in lines
    assert 'openlora:request_errors_total{code="MODEL_NOT_FOUND",model_name="tiny-base"} 1.0' in lines
    assert 'openlora:adapter_wait_seconds_count{model_name="tiny-base",tier="host"} 1.0' in lines
    assert 'openlora:kv_cache_usage_perc{model_name="tiny-base"} 0.25' in lines


async def test_version(server) -> None:
    told = (await ask(server.address, get("/version"))).json
    assert (told["version"], told["model"], told["model_digest"]) == (version("openlora-node"), BASE, digest_of(BASE))
    assert set(told) >= {"device", "dtype", "lora_dtype", "quantization", "eos_token_ids"}
