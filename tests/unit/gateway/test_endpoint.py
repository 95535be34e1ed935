"""The HTTP endpoint over scripted nodes: the stock OpenAI client, raw requests, and whoever should not be let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest

from openlora_node.config.endpoints import HostPort
from openlora_node.gateway.door import listen
from openlora_node.gateway.endpoint import Endpoint
from openlora_node.gateway.guard import Guard
from openlora_node.gateway.purse import Caps
from openlora_node.gateway.texts import Texts
from openlora_node.journal import spending
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth
from support.gateway_world import BASE, POET, Script, World, chat, world

TOKEN = "a-token-that-only-the-test-knows"


@asynccontextmanager
async def served(
    tmp_path: Path, *scripts: Script, max_connections: int = 64, texts: Texts | None = None, caps: Caps | None = None
) -> AsyncIterator[tuple[World, str]]:
    """A gateway's endpoint on a free port."""
    async with world(tmp_path, *scripts, caps=caps) as w:

        async def health() -> list[ServiceHealth]:
            return [w.chain.health(), await w.street.health()]

        endpoint = Endpoint(w.payer, Guard(TOKEN), health, max_body=64 << 10, texts=texts)
        listening = await listen(endpoint.app(), HostPort("127.0.0.1", 0), max_connections=max_connections)
        try:
            yield w, listening.url
        finally:
            await listening.close()


@asynccontextmanager
async def client(url: str, token: str = TOKEN) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=20) as made:
        yield made


@asynccontextmanager
async def http(url: str, token: str | None = TOKEN, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    own = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(url, headers={**own, **headers}) as session:
        yield session


MESSAGES = [{"role": "user", "content": "the quick brown fox"}]


async def test_the_stock_client_gets_an_answer_with_its_fee_and_receipt(tmp_path: Path) -> None:
    async with served(tmp_path) as (w, url), client(url) as ai:
        raw = await ai.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]
        completion = raw.parse()
        assert completion.choices[0].message.content == "".join(f"t{token} " for token in range(100, 112))
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 12
        (row,) = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        facts = completion.openlora  # type: ignore[attr-defined]
        assert raw.headers["X-OpenLoRA-Fee"] == facts["fee"] == str(row.amount)
        assert raw.headers["X-OpenLoRA-Receipt"] == facts["receipt"]
        assert raw.headers["X-OpenLoRA-Node"] == facts["node"] == "0x" + w.nodes[0].node.hex()
        assert int(facts["compute"]) + int(facts["royalties"]) == row.amount
        assert sum(int(share["wei"]) for share in facts["earns"]) <= int(facts["royalties"])
        assert facts["earns"][0]["artifact"] == f"sha256:{BASE.hex()}"


async def test_a_stream_ends_with_fee_and_receipt(tmp_path: Path) -> None:
    async with served(tmp_path) as (w, url), client(url) as ai:
        stream = await ai.chat.completions.create(
            model="tiny+poet",
            messages=MESSAGES,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "".join(f"t{token} " for token in range(100, 112))
        assert chunks[-1].usage is not None
        facts = chunks[-1].openlora  # type: ignore[attr-defined]
        assert facts["receipt"].startswith("0x")
        assert chunks[-2].openlora == facts  # type: ignore[attr-defined]
        assert [share["artifact"] for share in facts["earns"]] == [f"sha256:{BASE.hex()}", f"sha256:{POET.hex()}"]
        await w.settle_down()


async def test_completions_models_quote_and_spend(tmp_path: Path) -> None:
    async with served(tmp_path, Script(), Script()) as (w, url), client(url) as ai, http(url) as raw:
        completion = await ai.completions.create(model="tiny", prompt=["one", "two"], max_tokens=4)
        assert [choice.text for choice in completion.choices] == ["t100 t101 t102 t103 "] * 2
        assert [choice.finish_reason for choice in completion.choices] == ["length", "length"]
        models = (await ai.models.list()).data
        assert [model.id for model in models] == ["tiny", "tiny+poet", "tiny+brevity"]
        price = models[0].openlora  # type: ignore[attr-defined]
        assert price["inputRate"] == "200000000000"
        assert price["nodes"] == 2
        assert models[1].openlora["royaltyRate"] == str(7 * 10**9)  # type: ignore[attr-defined]
        async with raw.post("/v1/quote", data=chat(model="tiny+poet", max_tokens=9)) as answer:
            told = await answer.json()
        assert answer.status == 200
        assert [quote["node"] for quote in told["quotes"]] == ["0x" + node.node.hex() for node in w.nodes]
        assert told["quotes"][0]["maxTokens"] == 9
        assert len(w.nodes[0].requests) == 1  # a quote signs nothing
        async with raw.get("/spend") as answer:
            spent = await answer.json()
        (row,) = spent["requests"]
        assert row["wei"] == spent["spentLast24h"]
        assert row["state"] == "paid"
        assert int(spent["leftOfDay"]) + int(spent["spentLast24h"]) == int(spent["perDay"])


async def test_a_failure_before_the_first_token_has_its_status(tmp_path: Path) -> None:
    busy = Script(refuse=OpenLoraError(ErrorCode.BUSY, retry_after_ms=2_500))
    async with served(tmp_path, busy) as (_, url), client(url) as ai:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await ai.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)  # type: ignore[call-overload]
            assert caught.value.status_code == 503
            assert caught.value.code == "BUSY"
            assert caught.value.response.headers["Retry-After"] == "3"


async def test_a_failure_mid_stream_is_its_last_event(tmp_path: Path) -> None:
    async with served(tmp_path, Script(vanish_after=4)) as (_, url), http(url) as raw:
        async with raw.post("/v1/chat/completions", data=chat(stream=True)) as answer:
            assert answer.status == 200
            text = (await answer.read()).decode()
        events = [line for line in text.split("\n\n") if line]
        assert "t100 " in text
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "NODE_LOST"
        assert "[DONE]" not in text


async def test_a_client_that_drops_the_line_is_settled_with(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with served(tmp_path, Script(output=tuple(range(400)), hold=hold)) as (w, url):
        for stream in (True, False):
            async with http(url) as raw:
                asking = asyncio.ensure_future(
                    raw.post("/v1/chat/completions", data=chat(stream=stream, max_tokens=400))
                )
                while not w.nodes[0].open:
                    await asyncio.sleep(0.001)
                asking.cancel()
            # The connection is closed: the handler is cancelled, the node is told.
            while not w.street.exchanges[-1].cancelled:
                await asyncio.sleep(0.001)
            hold.set()
            await w.settle_down()
            hold.clear()
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert {row.state for row in rows} == {spending.SpendState.PAID}
        assert await w.nodes[0].owed() == 0


@pytest.mark.parametrize(
    ("token", "headers", "status", "code"),
    [
        (None, {}, 401, "UNAUTHORIZED"),
        ("another", {}, 401, "UNAUTHORIZED"),
        (TOKEN, {"Host": "evil.example"}, 403, "FORBIDDEN"),
        (TOKEN, {"Origin": "https://evil.example"}, 403, "FORBIDDEN"),
        (TOKEN, {"Host": "evil.example", "Origin": "http://evil.example"}, 403, "FORBIDDEN"),
    ],
)
async def test_who_may_not_spend(
    tmp_path: Path, token: str | None, headers: dict[str, str], status: int, code: str
) -> None:
    async with served(tmp_path) as (w, url), http(url, token, **headers) as raw:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/quote"):
            async with raw.post(path, data=chat()) as answer:
                assert answer.status == status
                assert (await answer.json())["error"]["code"] == code
        for path in ("/v1/models", "/spend"):
            async with raw.get(path) as answer:
                assert answer.status == status
        assert w.nodes[0].requests == []


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "MALFORMED", None),
        (chat(model="nothing"), 404, "MODEL_NOT_FOUND", "model"),
        (chat(model="tiny+nobody"), 404, "ADAPTER_NOT_FOUND", "adapters"),
        (chat(adapters=[{"id": "poet", "weight": 0.33}]), 400, "BAD_PIPELINE", "adapters"),
        (chat(model="tiny+poet", adapters=[{"id": "poet"}]), 400, "MALFORMED", "adapters"),
        (chat(temprature=1), 400, "MALFORMED", "temprature"),
        (chat(tools=[{"type": "function"}]), 400, "UNSUPPORTED", "tools"),
        (b" " * (65 << 10), 413, "FRAME_TOO_LARGE", None),
    ],
    ids=["json", "model", "adapter", "weight", "twice", "typo", "tools", "size"],
)
async def test_bodies_that_are_refused(tmp_path: Path, body: bytes, status: int, code: str, param: str | None) -> None:
    async with served(tmp_path) as (w, url), http(url) as raw:
        async with raw.post("/v1/chat/completions", data=body) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["param"]) == (status, code, param)
        assert w.nodes[0].requests == []


async def test_an_unknown_model_tells_what_there_is(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, url), client(url) as ai:
        with pytest.raises(openai.NotFoundError, match=r"did you mean poet.*tiny, tiny\+poet"):
            await ai.chat.completions.create(model="poem", messages=MESSAGES)  # type: ignore[arg-type]


async def test_the_days_cap_is_told_to_the_client(tmp_path: Path) -> None:
    async with served(tmp_path, caps=Caps(10**15, 10)) as (_, url), http(url) as raw:
        async with raw.post("/v1/chat/completions", data=chat(max_tokens=2)) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (402, "SPEND_CAP")
        assert "spend_per_day" in error["message"]


async def test_more_connections_than_allowed_are_refused_in_http(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with (
        served(tmp_path, Script(hold=hold), max_connections=2) as (w, url),
        http(url) as one,
        http(url) as two,
        http(url) as three,
    ):
        asking = [asyncio.ensure_future(s.post("/v1/chat/completions", data=chat())) for s in (one, two)]
        while len(w.nodes[0].open) < 2:
            await asyncio.sleep(0.001)
        async with three.get("/healthz") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "BUSY"
        hold.set()
        for answer in await asyncio.gather(*asking):
            assert answer.status == 200
            answer.release()


async def test_health_needs_no_token_and_tells_what_is_missing(tmp_path: Path) -> None:
    async with served(tmp_path) as (w, url), http(url, None) as raw:
        async with raw.get("/healthz") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")
        w.chain.down = True
        async with raw.get("/healthz") as answer:
            told = await answer.json()
        assert told["status"] == "degraded"
        assert told["services"][0] == {"name": "chain", "level": Level.DEGRADED, "reason": "down", "since": 0}


async def test_text_is_kept_only_where_asked_and_not_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    clock = [1_000]
    texts = Texts(folder, 60, lambda: clock[0])
    async with served(tmp_path, texts=texts) as (w, url), client(url) as ai:
        await ai.chat.completions.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]
        (file,) = folder.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        kept = json.loads(file.read_text())
        assert kept["prompt"] == {"messages": MESSAGES}
        assert kept["outputs"][0].startswith("t100 ")
        assert file.stem == kept["receipt"].removeprefix("0x")
        clock[0] = int(file.stat().st_mtime) + 59
        assert texts.expire() == 0
        clock[0] += 2
        assert texts.expire() == 1
        await w.settle_down()
    assert list(folder.iterdir()) == []
    other = tmp_path / "other"
    other.mkdir()
    async with served(other) as (w, url), client(url) as ai:
        await ai.chat.completions.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]
        await w.settle_down()
        assert not any(b"the quick brown fox" in path.read_bytes() for path in other.glob("payer.sqlite*"))


async def test_an_unknown_route_says_which_there_are(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, url), http(url) as raw, raw.get("/v1/nothing") as answer:
        assert answer.status == 404
        assert "/v1/chat/completions" in (await answer.json())["error"]["message"]
