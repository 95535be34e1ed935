"""A whole node under hostile peers: whatever they send, hold back or leave unread, others are served meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from openlora_node.network import inference_server
from openlora_node.network import scores as scores_module
from openlora_node.network import stream as stream_module
from openlora_node.network.inference import Exchange, Inbound, InferClient
from openlora_node.network.service import Life, Network
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.framing import encode_varint
from openlora_node.protocol.messages import INFER, PROTOCOLS, Accepted, Done, Infer
from support.network_infer import PAY, World, infer, make_network, scripted, world

GIB = b"\x80\x80\x80\x80\x04"
"""1 GiB as an unsigned varint."""


@asynccontextmanager
async def attacker(w: World) -> AsyncIterator[tuple[Network, ID]]:
    """A stranger connected to the first node, and the node's peer id."""
    network, _ = make_network(w.registry, payer=True)
    await network.start()
    try:
        victim = w.nodes[0].network
        peer = await victim.peer_id()
        await network.connect(peer, await victim.addresses())
        yield network, ID.from_base58(peer)
    finally:
        await network.stop()


async def serves(w: World, client: InferClient, seconds: float = 10.0) -> None:
    """An honest payer gets its answer."""
    async with asyncio.timeout(seconds), await client.open(w.nodes[0].node) as exchange:
        await exchange.send(infer(b"3"))
        while not isinstance(await exchange.receive(), Done):
            pass
        await exchange.send(PAY)
        await exchange.receive()


async def streams_of(victim: Network, peer: str) -> int:
    """Inference streams that a peer holds open."""

    async def count(life: Life) -> int:
        connections = life.host._swarm.connections.get(ID.from_base58(peer), ())
        return sum(stream.get_protocol() == INFER.id for each in connections for stream in each.get_streams())

    return await victim._bridge.call(count)


def resident() -> int:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def nonsense(dice: random.Random) -> list[bytes]:
    """What no protocol expects: noise, lengths that promise a lot, beginnings without an end."""
    return [
        dice.randbytes(300),
        dice.randbytes(70_000),
        GIB,
        GIB + bytes(100_000),
        b"\xff" * 64,
        b"\x64\x01\x02",
        b"\x01\xc1",
        bytes(1000),
        b"",
    ]


@pytest.mark.slow
async def test_noise_and_huge_lengths_on_every_protocol_a_node_speaks_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scores_module, "DENY_AT", 1e9)  # one attacker for all of it
    async with world() as w, attacker(w) as (network, victim):
        client = InferClient(w.payer)
        await serves(w, client)
        before = resident()

        async def attack(life: Life) -> set[str]:
            host = life.host
            store = host.inner.get_peerstore()
            while not (victim in store.peer_ids() and len(store.get_protocols(victim)) > 3):
                await trio.sleep(0.02)
            protocols = set(store.get_protocols(victim)) | {protocol.id for protocol in PROTOCOLS}
            dice = random.Random(5)
            hit: set[str] = set()
            for protocol in sorted(protocols):
                for data in nonsense(dice):
                    if not host.is_connected(victim.to_base58()):
                        await host.connect(victim.to_base58())
                    with suppress(Exception), trio.move_on_after(2):
                        stream = await host.inner.new_stream(victim, [TProtocol(protocol)])
                        await stream.write(data)
                        hit.add(protocol)
                        await (stream.close() if len(data) % 2 else stream.reset())
            return hit

        hit = await network._bridge.call(attack)
        assert {INFER.id, "/openlora/advert/1", "/openlora/kad/1", "/ipfs/id/1.0.0", "/meshsub/1.1.0"} <= hit
        await serves(w, client)
        assert w.nodes[0].network.restarts == 0
        assert resident() - before < 100, "no length was believed"
        await client.close()


async def test_streams_that_say_nothing_or_trickle_end_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "FRAME_TIMEOUT_S", 0.5)
    monkeypatch.setattr(inference_server, "SILENT_S", 0.5)
    async with world() as w, attacker(w) as (network, victim):
        client = InferClient(w.payer)
        half = encode_varint(1 << 20)

        async def attack(life: Life) -> list[INetStream]:
            opened = []
            for index in range(40):
                stream = await life.host.inner.new_stream(victim, [TProtocol(INFER.id)])
                if index % 2:
                    await stream.write(half)
                opened.append(stream)
            return opened

        async def trickle(life: Life) -> None:
            for stream in opened[1::2]:
                with suppress(Exception):
                    await stream.write(b"\x81")

        peer = await network.peer_id()
        opened = await network._bridge.call(attack)
        for _ in range(5):
            await network._bridge.call(trickle)
            await serves(w, client)
        async with asyncio.timeout(10):
            while await streams_of(w.nodes[0].network, peer):
                await network._bridge.call(trickle)
                await asyncio.sleep(0.05)
        await serves(w, client)
        await client.close()


@pytest.mark.slow
async def test_a_payer_that_never_reads_loses_its_stream_and_its_handler_learns_of_it() -> None:
    lost: asyncio.Queue[tuple[ErrorCode, int]] = asyncio.Queue()

    async def handler(inbound: Inbound) -> None:
        assert isinstance(inbound.first, Infer)
        if inbound.first.body != b"endless":
            await scripted(inbound)
            return
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        place = 0
        try:
            while True:
                await inbound.tokens(0, place, (place,), 1000 * "x")
                place += 1
        except OpenLoraError as error:
            lost.put_nowait((error.code, place))
            raise

    async with world(handler) as w, attacker(w) as (network, victim):
        client = InferClient(w.payer)
        await serves(w, client)

        async def attack(life: Life) -> INetStream:
            stream = await life.host.inner.new_stream(victim, [TProtocol(INFER.id)])
            await stream.write(INFER.encode(infer(b"endless")))
            return stream

        stream = await network._bridge.call(attack)
        await serves(w, client)
        async with asyncio.timeout(20):
            code, sent = await lost.get()
        assert code is ErrorCode.NODE_LOST
        assert sent < 20_000, "20 MB: a window, what the stream and the request may hold, and the merged rest"
        assert stream is not None
        await serves(w, client)
        await client.close()


async def test_more_requests_than_allowed_are_turned_away_and_the_rest_are_answered() -> None:
    go_on = asyncio.Event()

    async def handler(inbound: Inbound) -> None:
        await go_on.wait()
        await scripted(inbound)

    async with world(handler, max_open=50) as w:
        client = InferClient(w.payer)

        async def one(exchange: Exchange) -> str:
            async with exchange:
                await exchange.send(infer(b"1"))
                try:
                    while not isinstance(await exchange.receive(), Done):
                        pass
                except OpenLoraError as error:
                    go_on.set()
                    return error.code.value
                return "done"

        exchanges = [await client.open(w.nodes[0].node) for _ in range(80)]
        results = await asyncio.gather(*(one(exchange) for exchange in exchanges))
        assert results.count("done") >= 50
        assert set(results) == {"done", "BUSY"}
        await client.close()
