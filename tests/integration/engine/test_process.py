"""The engine as its user runs it: a process on a socket, asked by the official client, given what strangers give."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import httpx2
import openai
import pytest
import torch

from support.engine_adapters import peft_adapter, plain_adapter, plain_config, plain_weights, targets_of, write_folder
from support.engine_tokenizer import tiny_tokenizer
from support.engine_wire import ask, connected, get, post
from support.engine_world import llama

pytestmark = pytest.mark.slow

MODEL = "tiny"
MESSAGES = [{"role": "user", "content": "Who serves the adapters?"}]


@pytest.fixture(scope="module")
def causal_lm() -> Any:
    return llama()


@pytest.fixture(scope="module")
def folders(causal_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and adapters as a user has them, and what a stranger may add."""
    root = tmp_path_factory.mktemp("engine")
    causal_lm.save_pretrained(root / MODEL)
    tiny_tokenizer().save_pretrained(root / MODEL)
    adapters = root / "adapters"
    for seed, name in enumerate(("a", "b", "c"), 1):
        peft_adapter(adapters / name, causal_lm, seed=seed)
    targets = targets_of(causal_lm)
    weights = plain_weights(targets)
    plain_adapter(adapters / "rank-300", targets, r=300, modules=("q_proj",))
    plain_adapter(adapters / "other-base", targets_of(llama(hidden_size=96)))
    write_folder(
        adapters / "nan",
        weights | {name: torch.full_like(w, float("nan")) for name, w in weights.items()},
        plain_config(),
    )
    write_folder(
        adapters / "truncated", (adapters / "a" / "adapter_model.safetensors").read_bytes()[:-9], plain_config()
    )
    write_folder(adapters / "header", (1 << 40).to_bytes(8, "little") + b"{", plain_config())
    write_folder(adapters / "pickle", None, plain_config())
    (adapters / "pickle" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    write_folder(adapters / "dora", weights, plain_config(use_dora=True, modules_to_save=["lm_head"]))
    (adapters / "link").symlink_to(adapters / "a")
    return root


@contextmanager
def engine(folders: Path, socket: Path) -> Iterator[Popen[str]]:
    """A running engine; killed at the end if it has not ended."""
    arguments = ["--model", folders / MODEL, "--adapters", folders / "adapters", "--uds", socket]
    arguments += ["--max-num-seqs", "8", "--max-loras", "2", "--max-num-batched-tokens", "64", "--host-cache", "64MiB"]
    arguments += ["--kv-cache-memory", "8MiB", "--num-threads", "1", "--stream-buffer", "8", "--drain-timeout-s", "20"]
    command = [sys.executable, "-P", "-m", "openlora_engine", *map(str, arguments)]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        if not any("serving on" in line for line in running.stdout):
            pytest.fail(f"the engine did not start: {running.stderr.read()}")
        yield running
        running.kill()


@asynccontextmanager
async def client_of(socket: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(socket)), timeout=100)
    async with openai.AsyncOpenAI(base_url="http://engine/v1", api_key="-", http_client=http, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def socket(folders: Path) -> Iterator[Path]:
    """Of the engine that this file's tests share."""
    with engine(folders, folders / "engine.sock"):
        yield folders / "engine.sock"


@pytest.fixture
async def client(socket: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(socket) as made:
        yield made


async def complete(client: openai.AsyncOpenAI, model: str = MODEL, **extra: Any) -> Any:
    body = {"ignore_eos": True, "return_token_ids": True} | extra
    return await client.completions.create(
        model=model, prompt="The quick brown fox", max_tokens=8, temperature=0, extra_body=body
    )


def token_ids(completion: Any) -> list[int]:
    return completion.choices[0].token_ids


class TestServing:
    """What is asked for is what answers."""

    async def test_base_adapters_and_mixes_answer_differently_and_repeatably(self, client: openai.AsyncOpenAI) -> None:
        mix = {"adapters": [{"id": "a", "weight": 0.7}, {"id": "b", "weight": 0.3}]}
        asked = [
            complete(client),
            *(complete(client, name) for name in ("a", "b", "c")),
            complete(client, **mix),
            complete(client, **mix, adapter_method="ties"),
        ]
        first = [token_ids(completion) for completion in await asyncio.gather(*asked)]
        assert len({tuple(ids) for ids in first}) == len(first)
        again = [token_ids(await complete(client, name)) for name in (MODEL, "a", "b", "c")]
        assert again == first[:4]
        assert token_ids(await complete(client, **mix)) == first[4]

    async def test_the_seed_of_a_mix_draws_its_masks(self, client: openai.AsyncOpenAI) -> None:
        def mixed(**options: Any) -> Any:
            both = [{"id": "a", "weight": 0.7}, {"id": "b", "weight": 0.3}]
            return complete(client, adapters=both, adapter_method="dare_linear", adapter_options=options or None)

        one, again, other, none = [
            token_ids(await mixed(**given)) for given in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {})
        ]
        assert one == again
        assert len({tuple(ids) for ids in (one, other, none)}) > 1
        with pytest.raises(openai.APIStatusError, match="seed"):
            await mixed(seed=-1)

    async def test_chat_streams_what_it_answers_whole(self, client: openai.AsyncOpenAI) -> None:
        settings: dict[str, Any] = {"model": "a", "messages": MESSAGES, "max_tokens": 12, "temperature": 0.8, "seed": 5}
        whole = await client.chat.completions.create(**settings)
        stream = await client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens

    async def test_a_schema_is_kept(self, client: openai.AsyncOpenAI) -> None:
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
        answer = await client.chat.completions.create(
            model="b", messages=MESSAGES, max_tokens=64, temperature=1.0, seed=1,
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        )  # fmt: skip
        assert json.loads(answer.choices[0].message.content or "") in ({"ok": True}, {"ok": False})

    async def test_models_are_listed_and_timings_told(self, client: openai.AsyncOpenAI) -> None:
        names = {model.id async for model in await client.models.list()}
        assert {MODEL, "a", "b", "c"} <= names
        timed = await complete(client, "c", return_timings=True)
        assert "adapter_tier" in str(timed.model_dump())

    async def test_an_adapter_is_loaded_replaced_pinned_and_unloaded(
        self, client: openai.AsyncOpenAI, socket: Path
    ) -> None:
        address = f"unix:{socket}"

        async def call(route: str, **body: Any) -> int:
            return (await ask(address, post(f"/v1/{route}", body))).status

        assert await call("load_lora_adapter", lora_name="mine", lora_path="a") == 200
        assert await call("load_lora_adapter", lora_name="mine", lora_path="b") == 409
        as_a = token_ids(await complete(client, "mine"))
        assert as_a == token_ids(await complete(client, "a"))
        assert await call("load_lora_adapter", lora_name="mine", lora_path="b", load_inplace=True) == 200
        assert token_ids(await complete(client, "mine")) == token_ids(await complete(client, "b"))
        assert await call("pin_lora_adapter", lora_name="mine") == 200
        assert await call("unpin_lora_adapter", lora_name="mine") == 200
        assert await call("unload_lora_adapter", lora_name="mine") == 200
        with pytest.raises(openai.NotFoundError):
            await complete(client, "mine")
        for path in ("../tiny", "/etc", "a/../../tiny"):
            assert await call("load_lora_adapter", lora_name="out", lora_path=path) in (404, 422)


class TestStrangers:
    """What must be refused is refused with its code, and the engine serves on."""

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("rank-300", "RANK_TOO_LARGE"),
            ("other-base", "ADAPTER_MISMATCH"),
            ("nan", "ADAPTER_INVALID"),
            ("truncated", "ADAPTER_INVALID"),
            ("header", "ADAPTER_INVALID"),
            ("pickle", "ADAPTER_INVALID"),
            ("dora", "ADAPTER_INVALID"),
        ],
    )
    async def test_bad_adapters(self, client: openai.AsyncOpenAI, name: str, code: str) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await complete(client, name)
        assert caught.value.body["code"] == code, caught.value.message  # type: ignore[index]
        await complete(client)

    async def test_a_symlinked_adapter_does_not_exist(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await complete(client, "link")
        assert caught.value.status_code in (404, 422)

    async def test_a_mix_beyond_the_rank_limit_names_the_flag(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await complete(client, adapters=[{"id": name, "weight": 1} for name in ("a", "b", "c", "a", "b")])
        assert caught.value.status_code == 422

    async def test_500_requests_at_once_are_answered_or_told_to_come_back(self, client: openai.AsyncOpenAI) -> None:
        names = (MODEL, "a", "b", "c")

        async def one(number: int) -> str:
            try:
                return str(len(token_ids(await complete(client, names[number % 4]))))
            except openai.RateLimitError as error:
                assert float(error.response.headers["retry-after"]) > 0
                return "busy"

        ends = await asyncio.gather(*(one(number) for number in range(500)))
        assert set(ends) <= {"8", "busy"}
        assert ends.count("8") >= 256

    async def test_a_client_that_stops_reading_holds_nobody_up(self, client: openai.AsyncOpenAI, socket: Path) -> None:
        address = f"unix:{socket}"
        body = {"model": "a", "prompt": "x", "max_tokens": 240, "stream": True, "ignore_eos": True, "n": 4}
        async with connected(address) as wire:
            await wire.post("/v1/completions", body | {"logprobs": 5})
            await wire.head()  # and reads no further
            for _ in range(3):
                assert len(token_ids(await complete(client, "b"))) == 8
        metrics = (await ask(address, get("/metrics"))).body.decode()
        assert "openlora:num_requests_running" in metrics


async def test_sigterm_in_mid_stream_lets_the_stream_end(folders: Path) -> None:
    socket = folders / "ending.sock"
    with engine(folders, socket) as process:
        async with client_of(socket) as client:
            stream = await client.completions.create(
                model="a", prompt="x", max_tokens=200, temperature=0, stream=True, extra_body={"ignore_eos": True}
            )
            chunks = [await anext(aiter(stream))]
            process.send_signal(signal.SIGTERM)
            chunks += [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert not socket.exists()
