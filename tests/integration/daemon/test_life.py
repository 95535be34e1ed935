"""A node as its operator runs it: registered, served, paid, watched, drained, stopped; nothing private in its log."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openlora_node.attribution.leaves import salt_of
from openlora_node.cli.exits import Exit
from openlora_node.journal import Reader
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.adverts import Advert
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.host import HostOptions
from openlora_node.network.identity import peer_id_of
from openlora_node.network.service import Network
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import parse_artifact_id
from openlora_node.protocol.merkle import NamedLeaf, named_root
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.structs import AccountQuery, Receipt
from support.chain_world import PAYER, ChainWorld, fresh_wallet
from support.daemon_payer import PROMPT, Asked, HttpPayer
from support.daemon_world import PASSWORD, NodeHome, NodeProcess, openlora, openlora_process, running_node
from support.network_peers import Registry, fresh_secret

from .conftest import MakeHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DOORS = {
    "api": {"health_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "signed_listen": "127.0.0.1:0"},
    "limits": {"unpaid_tokens": 8},
}


async def payer_of(node: NodeProcess, world: ChainWorld, prompt_tokens: int) -> HttpPayer:
    """The devnet's payer at this node's signed door."""
    status = await node.ask("/status")
    base = bytes(parse_artifact_id(status["base"]))
    url = status["listening"]["signed"]
    return HttpPayer(url, world.domain, PAYER, node.home.node, Pipeline.of(base), prompt_tokens)


async def run(payer: HttpPayer, asked: Asked) -> list[dict[str, Any]]:
    """A response to its end, paying whatever is asked for on the way."""
    seen: list[dict[str, Any]] = []
    async with payer.send(asked) as answer:
        assert answer.status == 200, await answer.text()
        async for line in payer.lines(answer):
            seen.append(line)
            await pay_for(payer, line)
    return seen


async def pay_for(payer: HttpPayer, line: dict[str, Any]) -> None:
    """Pay what a line of a response asks for, if it does."""
    if line["t"] == "paused":
        due = {"tokens": line["cumulativeTokens"], "compute": int(line["cumulativeCompute"])}
        status, _ = await payer.pay(payer.voucher(payer.tally, **due))
        assert status == 200
    elif line["t"] == "done":
        payer.book(line)
        status, _ = await payer.pay(payer.voucher(payer.tally))
        assert status == 200


async def test_from_registration_to_a_paid_response_and_out(
    make_home: MakeHome, world: ChainWorld, prompt_tokens: int
) -> None:
    home = await make_home(**DOORS)
    config = str(home.config)
    async with running_node(home) as node:
        told = await node.until(lambda line: "openlora operator register" in line)
        assert told.startswith("not serving: registration")
        assert any(line == "READY=1" for line in node.heard), "a node that waits for its owner is up"
        assert (await openlora("status", "--config", config)).returncode == Exit.REFUSED

        await world.fund(home.wallet.address)
        home.node = await world.register_node(home.wallet)
        await world.send(PAYER, world.settlement.deposit(home.node, 10**18))
        await node.until(lambda line: line.startswith("serving") and "settlement" not in line)

        status = (await openlora("status", "--config", config, "--json")).json
        assert status["ready"]
        assert status["node"] == f"0x{home.node.hex()}"
        levels = node.services(status)
        for name in ("registration", "chain", "journal", "engine", "settlement"):
            assert levels[name] == "up", status
        await the_doors_of_health_answer(status)

        async with await payer_of(node, world, prompt_tokens) as payer:
            lines = await run(payer, await payer.ask(24))
            kinds = [line["t"] for line in lines]
            assert kinds[0] == "accepted"
            assert kinds[-2:] == ["done", "settled"]
            assert "paused" in kinds, "24 tokens with 8 unpaid allowed"
            tokens = [token for line in lines if line["t"] == "tokens" for token in line["tokenIds"]]
            assert len(tokens) == 24
            again = await run(payer, await payer.ask(4))
            assert again[-1]["t"] == "settled"
            await a_receipt_brings_its_leaves(payer, again[-2])

            metrics = await text_of(status["listening"]["metrics"] + "/metrics")
            for expected in (
                'openlora_node_requests_total{outcome="complete"} 2.0',
                'openlora_node_tokens_total{kind="generated"} 28.0',
                'openlora_node_service_up{service="engine"} 1.0',
                "openlora_node_ttft_seconds_count 2.0",
                "openlora_node_receipts_total 2.0",
            ):
                assert expected in metrics, metrics
            assert "openlora_node_gas_balance_wei" in metrics

            await the_node_key_sends_what_it_may(node, world)
            await second_start_is_refused(home)
            backup = Path((await node.order("/backup"))["backup"])
            with Reader(backup) as reader:
                assert reader.summary().receipts == 2
                assert not reader.violations(deep=True)

            assert (await openlora("drain", "--config", config)).returncode == 0
            await node.until(lambda line: not line.startswith("serving"))
            answer = await payer.post(
                "/v1/quote", {"payer": f"0x{PAYER.address.hex()}", "pipeline": payer.pipeline.to_json()}
            )
            assert (answer[0], answer[1]["error"]["code"]) == (503, "DRAINING")

        assert await node.stop() == 0
    nothing_private_is_told(home, payer)
    offline = (await openlora("status", "--config", config, "--json")).json
    assert (offline["pid"], offline["journal"]["receipts"]) == (None, 2)
    assert (await openlora("db", "check", "--deep", "--config", config)).returncode == 0


async def a_receipt_brings_its_leaves(payer: HttpPayer, done: dict[str, Any]) -> None:
    """With the last line, and again to its payer by the digest; they lead to the roots that the node signed."""
    receipt = Signed.from_json(Receipt, done["receipt"]).value
    salt = bytes.fromhex(done["salt"][2:])
    for group, root in (("attribution", receipt.attribution_root), ("commitment", receipt.commitment_root)):
        leaves = [
            NamedLeaf(name, bytes.fromhex(value[2:]), salt_of(salt, name))
            for name, value in done["evidence"][group].items()
        ]
        assert leaves
        assert named_root(leaves) == root
    query = AccountQuery(payer=payer.wallet.address, node=payer.node, issued_at=int(time.time()))
    asked = {
        "query": query.sign(payer.domain, payer.wallet).to_json(),
        "receipt": f"0x{receipt.digest(payer.domain).hex()}",
    }
    status, proof = await payer.post("/v1/proof", asked)
    assert status == 200
    assert (proof["evidence"], proof["salt"], proof["closed"]) == (done["evidence"], done["salt"], False)
    stranger = fresh_wallet("nobody's receipts")
    query = AccountQuery(payer=stranger.address, node=payer.node, issued_at=int(time.time()))
    status, refused = await payer.post("/v1/proof", asked | {"query": query.sign(payer.domain, stranger).to_json()})
    assert (status, refused["error"]["code"]) == (404, "NOT_FOUND")


async def the_doors_of_health_answer(status: dict[str, Any]) -> None:
    url = status["listening"]["health"]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 206, "no peer is connected, all else is up"
            assert {service["name"] for service in (await answer.json())["services"]} >= {"engine", "chain", "disk"}


async def the_node_key_sends_what_it_may(node: NodeProcess, world: ChainWorld) -> None:
    """Vouchers are redeemed on demand; a call goes through the node's own outbox; nothing else is signed for."""
    assert await node.order("/settlement/redeem") == {"queued": 1}
    call = world.settlement.deposit(node.home.node, 5)
    order = {"kind": "deposit", "subject": "0x01", "data": f"0x{call.data.hex()}", "value": "5"}
    queued = await node.order("/transactions", to=f"0x{call.to.hex()}", **order)
    assert await node.order("/transactions", to=f"0x{call.to.hex()}", **order) == queued, "once a kind and subject"
    with pytest.raises(OpenLoraError) as caught:
        await node.order("/transactions", to=f"0x{PAYER.address.hex()}", kind="gift", subject="0x02", value="1")
    assert caught.value.code is ErrorCode.ACCESS_DENIED
    async with asyncio.timeout(60):
        while {entry["state"] for entry in await node.ask("/transactions")} - {"mined", "final"}:
            await asyncio.sleep(0.1)
    assert [entry["kind"] for entry in await node.ask("/transactions")] == ["deposit", "redeem"]
    assert (await world.settlement.account_of(node.home.wallet.address, node.home.node)).balance == 5
    assert await world.settlement.operator_balance(node.home.node) > 0


async def second_start_is_refused(home: NodeHome) -> None:
    second = await openlora_process(
        "run", "--config", str(home.config), "--set", f"api.control_socket={home.root}/second.sock"
    )
    assert second.returncode == Exit.CONFIG
    assert re.search(r"process \d+ uses this data directory", second.stderr)


def nothing_private_is_told(home: NodeHome, payer: HttpPayer) -> None:
    """The log of everything above: valid JSON, and neither a prompt, an output nor a secret in it."""
    log = (home.root / "log").read_text()
    entries = [json.loads(line) for line in log.splitlines()]
    assert len(entries) > 5
    assert all(entry["level"] != "error" for entry in entries), log
    secret = home.wallet.reveal().hex()
    for private in (PROMPT, "hunter22", "who serves", PASSWORD, secret, payer.wallet.reveal().hex()):
        assert private not in log


async def text_of(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        return await answer.text()


async def paused(payer: HttpPayer, answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Read on until the node waits for a voucher: in mid-stream, for as long as the test likes."""
    async for line in payer.lines(answer):
        if line["t"] == "paused":
            return line
    raise AssertionError("the response ended without a pause")


async def test_sigterm_is_told_to_all_and_lets_what_runs_end(
    registered_home: MakeHome, world: ChainWorld, prompt_tokens: int
) -> None:
    """Peers see the node come, and go as soon as it drains; the payer whom it serves sees the end of its response."""
    home = await registered_home(**DOORS)
    async with running_node(home) as node:
        await node.until_serving()
        status = await node.ask("/status")
        base = bytes(parse_artifact_id(status["base"]))
        async with peer_of(node, world, base) as peer, await payer_of(node, world, prompt_tokens) as payer:
            (advert,) = await live_nodes(peer, base, 1)
            assert advert.node == home.node
            assert advert.value.input_rate == 2 * 10**17, "0.2 OPEN, as configured"
            assert advert.value.max_context == 256
            async with payer.send(await payer.ask(24)) as answer:
                line = await paused(payer, answer)
                node.process.send_signal(signal.SIGTERM)
                await node.until(lambda status: status == "SIGTERM")
                assert "STOPPING=1" in node.heard
                assert await live_nodes(peer, base, 0) == ()
                assert node.process.returncode is None, "what it serves is not over"
                refused = await payer.post("/v1/quote", {"payer": f"0x{PAYER.address.hex()}",
                                                        "pipeline": payer.pipeline.to_json()})  # fmt: skip
                assert refused[1]["error"]["code"] == "DRAINING"
                await pay_for(payer, line)
                rest = []
                async for line in payer.lines(answer):
                    rest.append(line["t"])
                    await pay_for(payer, line)
            assert rest[-2:] == ["done", "settled"], "it ran to its end, and was paid"
        assert await node.end() == 0


@asynccontextmanager
async def peer_of(node: NodeProcess, world: ChainWorld, base: bytes) -> AsyncIterator[Network]:
    """A peer that is connected to the node and hears the adverts of its base."""
    home = node.home
    (address,) = (await node.ask("/net/addrs"))["listen"]
    peer = Network(
        fresh_secret(), HostOptions(listen=("/ip4/127.0.0.1/tcp/0",)), Registry(nodes={home.wallet.address: home.node}),
        adverts=AdvertOptions(domain=world.domain), directory=DirectoryOptions(domain=world.domain, serve=False),
    )  # fmt: skip
    await peer.start()
    try:
        await peer.follow(base)
        await peer.connect(peer_id_of(home.wallet.reveal()), (address,))
        yield peer
    finally:
        await peer.stop()


async def live_nodes(peer: Network, base: bytes, count: int) -> tuple[Advert, ...]:
    """The live adverts of a base, once there are so many: adverts come by themselves, and nobody tells of each."""
    async with asyncio.timeout(60):
        while len(found := await peer.nodes(base)) != count:
            await asyncio.sleep(0.05)
    return found


async def test_a_second_signal_ends_it_at_once_and_costs_the_payer_nothing(
    registered_home: MakeHome, world: ChainWorld, prompt_tokens: int
) -> None:
    home = await registered_home(**DOORS)
    async with running_node(home) as node:
        await node.until_serving()
        async with await payer_of(node, world, prompt_tokens) as payer:
            asked = await payer.ask(24)
            async with payer.send(asked) as answer:
                await paused(payer, answer)
                node.process.send_signal(signal.SIGTERM)
                await node.until(lambda status: status == "SIGTERM")
                assert await node.stop(timeout_s=10) == 0
                kinds = [line["t"] async for line in payer.lines(answer)]
                assert "done" not in kinds
    with Reader(home.state / "node.sqlite") as reader:
        summary = reader.summary()
    assert (summary.receipts, summary.running) == (0, 0)


async def test_killed_in_mid_stream_it_loses_nothing_and_serves_the_same_request_again(
    registered_home: MakeHome, world: ChainWorld, prompt_tokens: int
) -> None:
    home = await registered_home(**DOORS)
    async with running_node(home) as node:
        await node.until_serving()
        async with await payer_of(node, world, prompt_tokens) as payer:
            asked = await payer.ask(24)
            async with payer.send(asked) as answer:
                await paused(payer, answer)
                assert await node.stop(signal.SIGKILL) == -signal.SIGKILL
                with pytest.raises(aiohttp.ClientError):
                    async for _ in payer.lines(answer):
                        pass
    with Reader(home.state / "node.sqlite") as reader:
        assert reader.summary().running == 1, "nobody could release it"
    async with running_node(home) as node:
        await node.until_serving()
        async with await payer_of(node, world, prompt_tokens) as again:
            again.quote = payer.quote
            quoted = await again.ask(24)  # the old quote went with the process
            lines = await run(again, quoted)
            assert lines[-1]["t"] == "settled"
        assert await node.stop() == 0
    with Reader(home.state / "node.sqlite") as reader:
        summary = reader.summary()
        assert (summary.receipts, summary.running, summary.interrupted) == (1, 0, 1)
        assert not reader.violations(deep=True)
