"""The gateway whole: a real chain, real libp2p, real serving, a scripted engine, the stock OpenAI client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from typer.testing import CliRunner

from openlora_chain.deployment import load_deployment
from openlora_chain.rpc import Rpc
from openlora_node.gateway.app import Gateway
from openlora_node.journal import Reader, spending
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import format_address
from support.chain_cli import ChainCli
from support.chain_world import PAYER, ChainWorld, fresh_wallet, running_devnet
from support.gateway_network import POET, RunningNode, Town, gateway, gateway_config, serving_node, town

MESSAGES = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running_devnet(tmp_path_factory.mktemp("devnet")) as running:
        yield running


@pytest.fixture
async def home(chain: tuple[str, Path], tmp_path: Path) -> AsyncIterator[Town]:
    async with town(*chain, tmp_path) as made:
        yield made


def client(running: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0, timeout=60)


async def test_from_nothing_to_a_paid_answer(home: Town) -> None:
    """Deposit through the outbox, tokenizer from the node, quote, request, stream, receipt, closing voucher."""
    async with serving_node(home, "one") as node, gateway(home, "payer", [node]) as running, client(running) as ai:
        stream = await ai.chat.completions.create(
            model="tiny+poet",
            messages=MESSAGES,  # type: ignore[arg-type]
            max_tokens=20,
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == "".join(f"t{place} " for place in range(20))
        facts = chunks[-1].openlora  # type: ignore[attr-defined]
        completion = await ai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)  # type: ignore[arg-type]
        assert completion.choices[0].finish_reason == "length"
        await running.requests.idle()
        payer = PAYER.address
        assert await node.journal.owed(payer, node.node) == 0
        with Reader(running.payer.purse.journal.path) as ours, Reader(node.journal.path) as theirs:
            assert ours.violations(deep=True) == theirs.violations(deep=True) == []
            assert ours.summary().receipts == theirs.summary().receipts == 2
            for mine, yours in zip(ours.ledgers(payer, node.node, 9), theirs.ledgers(payer, node.node, 9), strict=True):
                assert (mine.tally, mine.fee, mine.voucher) == (yours.tally, yours.fee, yours.voucher)
            receipts = theirs.receipts(node.node, -1, 9)
        assert facts["receipt"] == f"0x{receipts[0].digest.hex()}"
        assert facts["earns"][1]["artifact"] == f"sha256:{POET.hex()}"
        escrow = await running.chain.view.escrow(payer, node.node, fresh=True)
        assert escrow.balance == 10**17


async def test_many_streams_side_by_side(home: Town) -> None:
    async with serving_node(home, "one") as node, gateway(home, "payer", [node]) as running, client(running) as ai:

        async def ask(number: int) -> str:
            stream = await ai.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": f"question number {number}"}],
                max_tokens=10 + number,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(ask(number) for number in range(24)))
        assert texts == ["".join(f"t{place} " for place in range(10 + number)) for number in range(24)]
        await running.requests.idle()
        assert await node.journal.owed(PAYER.address, node.node) == 0
        rows = await running.payer.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert {row.state for row in rows} == {spending.SpendState.PAID}
        assert sum(row.charged for row in rows) == 1


async def test_a_node_that_goes_before_its_first_token_is_replaced(home: Town) -> None:
    async with (
        serving_node(home, "one") as one,
        serving_node(home, "two") as two,
        gateway(home, "payer", [one, two]) as running,
        client(running) as ai,
    ):
        for node in (one, two):
            node.engine.hold = 0
        asking = asyncio.ensure_future(ai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5))  # type: ignore[arg-type]
        held = [asyncio.ensure_future(node.engine.held.wait()) for node in (one, two)]
        await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        first, second = (one, two) if one.engine.held.is_set() else (two, one)
        second.engine.hold = None
        await first.crash()
        completion = await asking
        assert completion.openlora["node"] == f"0x{second.node.hex()}"  # type: ignore[attr-defined]
        rows = await running.payer.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert sorted(row.state for row in rows) == ["lost", "paid"]
        for waiting in held:
            waiting.cancel()
        first.engine.release.set()


async def test_a_node_that_goes_mid_stream_ends_the_stream(home: Town) -> None:
    async with (
        serving_node(home, "one") as node,
        serving_node(home, "two") as other,
        gateway(home, "payer", [node], top_nodes=1) as running,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {running.token}"}) as http,
    ):
        node.engine.hold = 4
        body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 30})
        async with http.post(f"{running.url}/v1/chat/completions", data=body) as answer:
            assert answer.status == 200
            seen = b""
            while b"t3 " not in seen:
                seen += await answer.content.readany()
            await node.crash()
            seen += await answer.content.read()
        error = json.loads(seen.decode().split("data: ")[-1])["error"]
        assert error["code"] == "NODE_LOST"
        assert other.engine.calls == 0
        (row,) = await running.payer.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert row.state is spending.SpendState.LOST
        ledger = (await running.payer.purse.journal.transact(lambda tx: tx.one("SELECT voucher_value FROM ledgers")))[0]
        assert row.amount == int.from_bytes(ledger, "big")
        node.engine.release.set()


async def test_the_command_line_asks_through_a_running_gateway_and_without_one(
    home: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openlora_node.gateway import client as link

    async with serving_node(home, "one") as node:
        config = gateway_config(home, "payer", [node])
        body = json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "stream": True}).encode()

        async def ask() -> tuple[str, dict[str, object]]:
            text, facts = "", {}
            async with link.reach_gateway(config) as reached:
                async for item in reached.ask(body):
                    if isinstance(item, dict):
                        facts = item
                    else:
                        text += item
                quote = await reached.quote(body)
            assert quote["quotes"][0]["maxTokens"] == 6
            return text, facts

        real = link.open_gateway
        monkeypatch.setattr(link, "open_gateway", lambda config, serve: real(config, wallet=PAYER, serve=serve))
        alone = await ask()
        async with gateway(home, "payer", [node]):
            beside = await ask()
            with pytest.raises(OpenLoraError) as caught:
                async with real(config, wallet=PAYER):
                    pass
            assert caught.value.code is ErrorCode.DATADIR_LOCKED
        assert alone[0] == beside[0] == "".join(f"t{place} " for place in range(6))
        assert int(str(alone[1]["fee"])) > int(str(beside[1]["fee"]))  # the settlement charge came once
        shown = await asyncio.to_thread(_spend, config)
        assert [row["state"] for row in shown["requests"]] == ["paid", "paid"]
        assert int(shown["spentLast24h"]) == sum(int(row["wei"]) for row in shown["requests"])


def _spend(config: object) -> dict[str, list[dict[str, str]]]:
    from openlora_node.cli.app import app

    result = CliRunner().invoke(
        app,
        ["spend", "show", "--json", "--set", f"node.data_dir={config.node.data_dir}"],  # type: ignore[attr-defined]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_a_key_that_a_wallet_authorizes_spends_the_wallets_escrow(home: Town) -> None:
    """Until then /healthz names the command; with it the same gateway is served, on the wallet's account."""
    wallet, signer = (fresh_wallet(f"gateway {name} {home.folder}") for name in ("wallet", "signer"))
    cli = ChainCli(home.folder, home.url, home.deployment)
    async with Rpc(home.url) as rpc:
        world = ChainWorld(rpc, load_deployment(home.deployment))
        for account in (wallet, signer):
            await world.fund(account.address)
    async with (
        serving_node(home, "one") as node,
        gateway(home, "payer", [node], wallet=signer, payer=format_address(wallet.address)) as running,
        client(running) as ai,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(f"{running.url}/healthz") as answer:
            (escrow,) = [one for one in (await answer.json())["services"] if one["name"] == "escrow"]
        command = escrow["reason"].split("`")[1]
        assert command.startswith("openlora escrow signer authorize")
        assert format_address(wallet.address) in command
        paying = ("--key", await cli.key(wallet, "wallet"), "--password-file", cli.password, "--yes")
        agreeing = ("--signer-key", await cli.key(signer, "signer"), "--signer-password-file", cli.password)
        await cli.json("escrow", "signer", "authorize", *agreeing, *paying)
        async with asyncio.timeout(30):
            while not await running.chain.view.may_sign(wallet.address, signer.address):
                await asyncio.sleep(0.1)
        completion = await ai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)  # type: ignore[arg-type]
        assert completion.choices[0].finish_reason == "length"
        await running.requests.idle()
        (row,) = await asyncio.to_thread(_ledgers, node, wallet.address)
        assert row.voucher is not None
        async with http.get(f"{running.url}/healthz") as answer:
            (escrow,) = [one for one in (await answer.json())["services"] if one["name"] == "escrow"]
        assert escrow["level"] == "up"


def _ledgers(node: RunningNode, payer: bytes) -> list[Any]:
    with Reader(node.journal.path) as reader:
        return list(reader.ledgers(payer, node.node, 9))


async def test_it_starts_without_a_chain_and_says_so(home: Town) -> None:
    config = gateway_config(home, "payer", [])
    dead = config.model_copy(update={"chain": config.chain.model_copy(update={"rpc_urls": ("http://127.0.0.1:9",)})})
    from openlora_node.gateway.app import open_gateway

    async with open_gateway(dead, wallet=PAYER) as running, aiohttp.ClientSession() as http:
        async with http.get(f"{running.url}/healthz") as answer:
            told = await answer.json()
        assert told["status"] != "ok"
        assert {service["name"]: service["level"] != "up" for service in told["services"]}["chain"]
        token = {"Authorization": f"Bearer {running.token}"}
        body = json.dumps({"model": "tiny", "messages": MESSAGES})
        async with http.post(f"{running.url}/v1/chat/completions", data=body, headers=token) as answer:
            assert answer.status == 502
            assert (await answer.json())["error"]["code"] == "CHAIN_FAILED"
