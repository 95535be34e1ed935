"""Two networks as the daemon sees them: sessions, back-pressure, crashes, stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from openlora_node.network import directory as directory_module
from openlora_node.network import session as session_module
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.bridge import BridgeState
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.service import Life, Network
from openlora_node.network.session import Session
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import INFER, Cancel, Message, Tokens
from support.network_adverts import BASE, DOMAIN, ONLINE, adapter
from support.network_peers import QUICK, Registry, fresh_secret

SERVES = (INFER,)
ALONE = DirectoryOptions(DOMAIN)


def network(registry: Registry | None = None, secret: bytes | None = None, **options: Any) -> Network:
    return Network(
        secret or fresh_secret(),
        QUICK,
        registry or Registry(),
        adverts=AdvertOptions(DOMAIN),
        directory=ALONE,
        serves=SERVES,
        **options,
    )


@asynccontextmanager
async def pair(a: Network | None = None, b: Network | None = None) -> AsyncIterator[tuple[Network, Network]]:
    """Two networks, the first connected to the second."""
    a, b = a or network(), b or network()
    await a.start()
    try:
        await b.start()
        await a.connect(await b.peer_id(), await b.addresses())
        async with asyncio.timeout(25):
            yield a, b
    finally:
        await a.stop()
        await b.stop()


def tokens(number: int) -> Tokens:
    return Tokens(id=1, start=number, token_ids=(number,), text=str(number))


async def receive(session: Session[Any]) -> Message | None:
    async with asyncio.timeout(10):
        return await session.receive()


async def test_messages_go_both_ways_in_order_and_the_end_arrives() -> None:
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        await out.send(Cancel(id=7))
        session = await b.accept()
        assert session.peer.id == await a.peer_id()
        assert session.protocol is INFER
        assert await receive(session) == Cancel(id=7)
        for number in range(500):
            await session.send(tokens(number))
        await session.close()
        assert [await receive(out) for _ in range(500)] == [tokens(number) for number in range(500)]
        assert await receive(out) is None
        await out.close()
        with pytest.raises(OpenLoraError):
            await out.send(Cancel(id=1))


async def test_a_half_closed_stream_still_carries_the_answer() -> None:
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        await out.send(Cancel(id=7))
        session = await b.accept()
        assert await receive(session) == Cancel(id=7)
        closing = asyncio.create_task(out.close())
        assert await receive(session) is None
        await session.close()
        await closing


async def test_the_registry_decides_whether_a_peer_is_the_node_asked_for() -> None:
    registry, secret = Registry(), fresh_secret()
    node = registry.register(secret)
    async with pair(network(registry), network(secret=secret)) as (a, b):
        session = await a.open(await b.peer_id(), INFER, node=node)
        assert session.peer.node == node
        with pytest.raises(OpenLoraError) as error:
            await a.open(await b.peer_id(), INFER, node=b"\x09" * 32)
        assert error.value.code is ErrorCode.WRONG_NODE
        registry.nodes.clear()  # its key was rotated away
        with pytest.raises(OpenLoraError) as error:
            await a.open(await b.peer_id(), INFER, node=node)
        assert error.value.code is ErrorCode.WRONG_NODE


@pytest.mark.slow
async def test_a_slow_owner_holds_the_sender_back_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WINDOW_BYTES", 1 << 18)
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        await out.send(Cancel(id=1))
        session = await b.accept()
        await receive(session)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await session.send(Tokens(id=1, start=sent, token_ids=(1,), text=16_000 * "x"))
                sent += 1

        task = asyncio.create_task(flood())
        settled = -1
        while settled != sent:
            settled = sent
            await asyncio.sleep(0.3)
        assert 20 < sent < 5_000, "two windows of 256 KiB, and what the system's socket buffers hold (17 MB were seen)"
        for _ in range(sent):
            assert isinstance(await receive(out), Tokens)
        while sent == settled:
            await asyncio.sleep(0.01)
        task.cancel()
        out.abort()


async def test_what_queued_up_leaves_in_fewer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        await out.send(Cancel(id=1))
        session = await b.accept()
        writes = 0
        send_frames = session._stream.send_frames

        async def count(frames: bytes) -> None:
            nonlocal writes
            writes += 1
            await send_frames(frames)

        monkeypatch.setattr(session._stream, "send_frames", count)
        for number in range(1000):
            await session.send(tokens(number))
        for number in range(1000):
            assert await receive(out) == tokens(number)
        assert writes < 300


async def test_too_many_waiting_sessions_are_told_to_come_back() -> None:
    async with pair(b=network(max_waiting=2)) as (a, b):
        peer = await b.peer_id()
        sessions = [await a.open(peer, INFER) for _ in range(3)]
        for session in sessions:
            await session.send(Cancel(id=1))
        answers = [asyncio.create_task(session.receive()) for session in sessions]
        done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        (answer,) = (task.result() for task in done)
        assert answer is not None
        assert answer.code == ErrorCode.BUSY.value  # type: ignore[union-attr]
        await b.accept()
        again = await a.open(peer, INFER)
        await again.send(Cancel(id=9))
        await b.accept()
        assert await receive(await b.accept()) == Cancel(id=9)
        for task in answers:
            task.cancel()


async def test_bad_bytes_end_the_session_and_cost_the_sender() -> None:
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        assert a._bridge.post(lambda _: trio.lowlevel.spawn_system_task(out._stream.send_frames, b"\x02\xc1\xc1"))
        session = await b.accept()
        with pytest.raises(OpenLoraError) as error:
            await receive(session)
        assert error.value.code is ErrorCode.MALFORMED
        peer = await a.peer_id()

        async def points(life: Life) -> float:
            return life.host.scores.points(peer, trio.current_time())

        async with asyncio.timeout(5):
            while await b._bridge.call(points) < 15:
                await asyncio.sleep(0.01)


async def test_a_crash_ends_sessions_and_the_network_comes_back_by_itself() -> None:
    secret = fresh_secret()
    async with pair(b=network(secret=secret)) as (a, b):
        peer = await b.peer_id()
        out = await a.open(peer, INFER)
        await out.send(Cancel(id=1))
        session = await b.accept()
        await receive(session)

        async def bug() -> None:
            raise RuntimeError("in a system task")

        b._bridge.post(lambda _: trio.lowlevel.spawn_system_task(bug))
        for end in (session, out):
            with pytest.raises(OpenLoraError) as error:
                while await receive(end) is not None:
                    pass
            assert error.value.code is ErrorCode.NODE_LOST
        async with asyncio.timeout(10):
            while True:
                try:
                    addresses = await b.addresses()
                    break
                except OpenLoraError as down:
                    assert down.code is ErrorCode.INTERNAL
                    await asyncio.sleep(0.02)
        assert b.restarts == 1
        assert await b.peer_id() == peer
        await a.connect(peer, addresses)
        again = await a.open(peer, INFER)
        await again.send(Cancel(id=2))
        assert await receive(await b.accept()) == Cancel(id=2)


async def test_stopping_takes_less_than_a_second_and_ends_sessions_on_both_sides() -> None:
    async with pair() as (a, b):
        out = await a.open(await b.peer_id(), INFER)
        await out.send(Cancel(id=1))
        session = await b.accept()
        await receive(session)
        waiting = asyncio.create_task(session.receive())
        began = time.monotonic()
        await b.stop()
        assert time.monotonic() - began < 1.0
        with pytest.raises(OpenLoraError):
            await waiting
        with pytest.raises(OpenLoraError):
            while await receive(out) is not None:
                pass


async def test_cancelling_an_open_leaves_no_stream() -> None:
    async with pair() as (a, b):
        peer = await b.peer_id()
        for delay in (0.0, 0.001, 0.005, 0.01, 0.02):
            with pytest.raises((TimeoutError, asyncio.CancelledError)):
                async with asyncio.timeout(delay):
                    while True:
                        (await a.open(peer, INFER)).abort()

        async def streams(life: Life) -> int:
            every = [s for cs in life.host._swarm.connections.values() for c in cs for s in c.get_streams()]
            return sum(stream.get_protocol() == INFER.id for stream in every)

        async with asyncio.timeout(5):
            while await a._bridge.call(streams):
                await asyncio.sleep(0.02)
        await (await a.open(peer, INFER)).close()


async def test_a_second_node_on_the_port_is_refused_at_start() -> None:
    async with pair() as (a, _):
        address = (await a.addresses())[0].partition("/p2p/")[0]
        other = Network(
            fresh_secret(),
            replace(QUICK, listen=(address,)),
            Registry(),
            adverts=AdvertOptions(DOMAIN),
            directory=ALONE,
        )
        with pytest.raises(OpenLoraError) as error:
            await other.start()
        assert error.value.code is ErrorCode.CONFIG_INVALID


async def test_what_a_node_says_reaches_others_and_survives_a_crash_of_its_network() -> None:
    registry, secret = Registry(), fresh_secret()
    node = registry.register(secret)
    ours = AdvertOptions(DOMAIN, node=node, key=LocalSigner(secret), debounce=0.05)
    b = Network(secret, QUICK, registry, adverts=ours, directory=ALONE)
    a = Network(fresh_secret(), QUICK, registry, adverts=AdvertOptions(DOMAIN, reconcile=0.2), directory=ALONE)
    b.advertise(replace(ONLINE, adapters=frozenset({adapter(1)})))
    async with pair(a, b):
        await a.follow(BASE)

        async def known() -> int:
            while not (adverts := await a.nodes(BASE)):
                await asyncio.sleep(0.02)
            assert adverts[0].node == node
            assert adverts[0].peer == await b.peer_id()
            return adverts[0].value.seq

        first = await known()
        found = await a.filter_of(node)
        assert found is not None
        assert adapter(1) in found
        assert await a.adapters_of(await b.peer_id()) == (adapter(1),)

        async def bug() -> None:
            raise RuntimeError("in a system task")

        b._bridge.post(lambda _: trio.lowlevel.spawn_system_task(bug))
        while b.restarts == 0 or b.state is not BridgeState.RUNNING:
            await asyncio.sleep(0.02)
        await a.connect(await b.peer_id(), await b.addresses())
        while await known() == first:
            await asyncio.sleep(0.05)
        with pytest.raises(OpenLoraError) as error:
            await a.connect_node(b"\x09" * 32)
        assert error.value.code is ErrorCode.NOT_FOUND
        assert (await a.connect_node(node)).node == node


@pytest.mark.slow
async def test_a_gateway_that_knows_one_bootstrap_peer_gets_to_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "PROVIDE_PACE_S", 0.1)
    registry, secret = Registry(), fresh_secret()
    node = registry.register(secret)
    hub = network(registry)
    await hub.start()
    joins = DirectoryOptions(DOMAIN, bootstrap=await hub.addresses(), first_retry=0.1)
    ours = AdvertOptions(DOMAIN, node=node, key=LocalSigner(secret), debounce=0.05)
    serving = Network(secret, QUICK, registry, adverts=ours, directory=joins, serves=SERVES)
    gateway = Network(
        fresh_secret(),
        QUICK,
        registry,
        adverts=AdvertOptions(DOMAIN, reconcile=3600),
        directory=replace(joins, serve=False),
    )
    serving.advertise(ONLINE)
    try:
        await serving.start()
        await gateway.start()
        await gateway.follow(BASE)
        async with asyncio.timeout(20):
            while not any(peer.node == node for peer in await gateway.peers()):
                await asyncio.sleep(0.05)
            while not await gateway.nodes(BASE):
                await asyncio.sleep(0.05)
            peer = await gateway.connect_node(node)
            session = await gateway.open(peer.id, INFER, node=node)
            await session.send(Cancel(id=3))
            assert await receive(await serving.accept()) == Cancel(id=3)
        assert not await gateway.is_degraded()
    finally:
        for each in (gateway, serving, hub):
            await each.stop()
