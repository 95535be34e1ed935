"""Adverts between running hosts: gossip, anti-entropy, filters, farewell, and peers that send what they should not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from openlora_node.network import advertising as advertising_module
from openlora_node.network.advertising import AdvertOptions, open_advertising, topic_of
from openlora_node.network.adverts import OwnState
from openlora_node.network.gossip import MESHSUB
from openlora_node.network.scores import Fault
from openlora_node.network.services import ContainedManager
from openlora_node.network.stream import FramedStream
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.messages import ADVERT, Adapters, AdvertMessage, Adverts, Filter, GetAdapters, GetAdverts
from openlora_node.protocol.structs import NodeState
from support.network_adverts import BASE, DOMAIN, ONLINE, Node, adapter, nodes, signed
from support.network_peers import QUICK, Registry, connect, fresh_secret, hosts, open_host, run, secret, until


def knows(node: Node, others: Iterable[Node]) -> bool:
    return all(node.advertising.table.get(other.node) is not None for other in others)


async def points(at: Node, peer: str, least: float) -> None:
    await until(lambda: at.host.scores.points(peer, trio.current_time()) >= least - 0.5)


def test_gossip_that_does_not_decode_costs_its_sender_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with nodes(1, Registry()) as (node,), hosts(1) as (stranger,):
            await connect(stranger, node.host)
            with trio.fail_after(10):
                while not node.host.scores.is_denied(stranger.id, trio.current_time()):
                    with suppress(Exception):  # its stream is reset while it writes, and at last its connection
                        stream = await stranger.inner.new_stream(ID.from_base58(node.host.id), [TProtocol(MESHSUB[0])])
                        await stream.write(b"\x04\xff\xff\xff\xff")
                    await trio.sleep(0.01)
            await until(lambda: not node.host.is_connected(stranger.id))

    with caplog.at_level("INFO", "openlora_node.network"):
        run(test)
    assert not [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info]
    assert len(caplog.text) < 2_000


def now() -> int:
    return int(advertising_module.time.time())


@pytest.mark.slow
def test_a_newcomer_has_a_full_table_within_five_seconds_of_twenty_nodes() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(20, registry) as others:
            for index, node in enumerate(others):
                node.advertising.update(ONLINE)
                await node.advertising.publish()
                if index:
                    await connect(node.host, others[0].host)
                    await connect(node.host, others[index - 1].host)
            async with nodes(1, registry) as (newcomer,):
                await until(lambda: knows(others[0], others), 30)
                began = trio.current_time()
                await connect(newcomer.host, others[0].host)
                await until(lambda: knows(newcomer, others))
                taken = trio.current_time() - began
                print(f"full table after {taken:.2f} s")
                assert taken < 5

    run(test, 110)


def test_what_gossip_lost_is_found_by_reconciling() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(3, registry, reconcile=0.2) as (a, b, c):
            await connect(a.host, b.host)
            await connect(b.host, c.host)
            await until(lambda: a.host.peers() and c.host.peers())
            c.advertising.update(ONLINE)
            await c.advertising.publish()  # nobody follows its base
            await until(lambda: knows(a, (c,)))

    run(test)


@pytest.mark.slow
def test_gossip_carries_a_change_past_the_neighbours() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(3, registry, debounce=0.1) as (a, b, c):
            for node in (a, b, c):
                node.advertising.update(ONLINE)
            await connect(a.host, b.host)
            await connect(b.host, c.host)
            await until(lambda: knows(c, (a, b)))
            gossip = b.advertising._gossip
            assert gossip is not None
            await until(lambda: gossip.followers(topic_of(BASE)) == 2)
            await trio.sleep(1.2)  # a heartbeat of the mesh, which has no event
            a.advertising.update(replace(ONLINE, input_rate=7))

            def arrived() -> bool:
                known = c.advertising.table.get(a.node)
                return known is not None and known.value.input_rate == 7

            await until(arrived, 10)
            a.advertising.update(replace(ONLINE, state=NodeState.DRAINING))
            await until(lambda: not any(x.node == a.node for x in c.advertising.table.live(BASE, now())), 10)

    run(test)


@pytest.mark.slow
def test_who_follows_one_base_hears_that_it_left_and_that_it_is_back() -> None:
    other = b"\x0d" * 32

    async def test() -> None:
        registry = Registry()
        async with nodes(2, registry, reconcile=3_600, debounce=0.1) as (a, b):
            await b.advertising.follow(other)
            await connect(a.host, b.host)
            a.advertising.update(replace(ONLINE, base_models=(BASE, other)))
            gossip = a.advertising._gossip
            assert gossip is not None
            await until(lambda: gossip.followers(topic_of(other)) == 1)
            await trio.sleep(1.2)  # a heartbeat of the mesh, which has no event
            steps = (((BASE, other), 1), ((BASE,), 0), ((BASE, other), 1), ((BASE,), 0))
            for price, (bases, live) in enumerate(steps, 100):  # each is news, whatever came before the mesh stood
                a.advertising.update(replace(ONLINE, base_models=bases, input_rate=price))
                await until(lambda live=live: len(b.advertising.table.live(other, now())) == live, 10)
            assert len(b.advertising.table.live(BASE, now())) == 1, "the node goes on with the other base"

    run(test)


@pytest.mark.slow
def test_a_stopping_node_says_so() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(1, registry) as (a,):
            a.advertising.update(ONLINE)
            await a.advertising.follow(BASE)
            async with nodes(1, registry) as (b,):
                b.advertising.update(ONLINE)
                await connect(b.host, a.host)
                await until(lambda: knows(a, (b,)))
                assert len(a.advertising.table.live(BASE, now())) == 2
                gossip = b.advertising._gossip
                assert gossip is not None
                await until(lambda: gossip.followers(topic_of(BASE)))
                await trio.sleep(1.2)  # a heartbeat of the mesh, which has no event
                began = trio.current_time()
            assert trio.current_time() - began < 1
            known = a.advertising.table.get(b.node)
            assert known is not None
            await until(lambda: a.advertising.table.get(b.node).value.state == NodeState.OFFLINE)  # type: ignore[union-attr]

    run(test)


def test_material_changes_are_debounced_and_others_wait_for_their_turn() -> None:
    async def test() -> None:
        async with nodes(1, Registry(), debounce=0.2) as (a,):

            def seq() -> int:
                known = a.advertising.table.get(a.node)
                return known.value.seq if known else 0

            a.advertising.update(ONLINE)
            await until(seq)
            first = seq()
            began = trio.current_time()
            for rate in range(1, 50):
                a.advertising.update(replace(ONLINE, input_rate=rate))
                await trio.sleep(0)
            await until(lambda: seq() > first)
            assert 0.1 < trio.current_time() - began < 2
            second = seq()
            known = a.advertising.table.get(a.node)
            assert known is not None
            assert known.value.input_rate == 49
            a.advertising.update(replace(ONLINE, input_rate=49, queue_depth=2))
            with trio.move_on_after(0.5):
                await until(lambda: seq() > second)
            assert seq() == second

    run(test)


def test_filters_and_lists_are_fetched_by_stream() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(2, registry) as (a, b):
            held = frozenset(adapter(n) for n in range(10_000))
            b.advertising.update(replace(ONLINE, adapters=held))
            await b.advertising.publish()
            await connect(a.host, b.host)
            await until(lambda: knows(a, (b,)))
            known = a.advertising.table.get(b.node)
            assert known is not None
            assert known.value.adapter_count == 10_000
            assert len(known.packed) <= 512
            assert a.advertising.known_filter(b.node) is None
            found = await a.advertising.filter_of(b.node)
            assert found is not None
            assert all(each in found for each in list(held)[:200])
            assert a.advertising.known_filter(b.node) is found
            assert await a.advertising.adapters_of(b.host.id) == tuple(sorted(held))
            assert await a.advertising.adapters_of(b.host.id, most=100) == tuple(sorted(held))[:100]
            with pytest.raises(OpenLoraError) as error:
                await a.advertising.filter_of(a.node)
            assert error.value.code is ErrorCode.NOT_FOUND

    run(test)


def test_a_node_that_gives_another_filter_than_it_signed_is_charged() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(2, registry) as (a, b):
            b.advertising.update(replace(ONLINE, adapters=frozenset({adapter(1)})))
            await b.advertising.publish()

            async def lie(stream: FramedStream[AdvertMessage]) -> None:
                while (question := await stream.receive()) is not None:
                    if isinstance(question, GetAdverts):
                        await stream.send(b.advertising._reply(question))
                    elif isinstance(question, GetAdapters):
                        await stream.send(Adapters(ids=(adapter(1), adapter(1))))
                    else:
                        await stream.send(Filter(data=b"another"))

            b.host.serve(ADVERT, lie)
            await connect(a.host, b.host)
            await until(lambda: knows(a, (b,)))
            with pytest.raises(OpenLoraError) as error:
                await a.advertising.filter_of(b.node)
            assert error.value.code is ErrorCode.NOT_FOUND
            await points(a, b.host.id, Fault.LIED.value)
            with pytest.raises(OpenLoraError):
                await a.advertising.adapters_of(b.host.id)
            await points(a, b.host.id, Fault.LIED.value + Fault.MALFORMED.value)

    run(test)


@pytest.mark.parametrize("bad", ["forged", "future", "oversized", "replayed", "malformed"])
def test_bad_adverts_cost_who_sends_them_and_nobody_else(bad: str) -> None:
    async def test() -> None:
        registry = Registry()
        victim = registry.register(secret(77))
        async with nodes(3, registry) as (a, liar, honest):
            good = signed(secret(77), victim, seq=5, now=now())
            sent = {
                "forged": signed(secret(78), victim, seq=9, now=now()).pack(),
                "future": signed(secret(77), victim, seq=9, now=now() + 3600).pack(),
                "oversized": bytes(512),
                "replayed": signed(secret(77), victim, seq=4, now=now()).pack(),
                "malformed": bytes(300),
            }[bad]
            assert a.advertising.judge(good.pack(), honest.host.id)

            async def serve(stream: FramedStream[AdvertMessage]) -> None:
                while await stream.receive() is not None:
                    await stream.send(Adverts(adverts=(sent,)))

            liar.host.serve(ADVERT, serve)
            await connect(a.host, liar.host)
            await connect(a.host, honest.host)
            least = {"replayed": 1.9, "future": 9.9}.get(bad, 19.0)
            await points(a, liar.host.id, least)
            held = a.advertising.table.get(victim)
            assert held is not None
            assert held.packed == good.pack()
            assert a.host.scores.points(honest.host.id, trio.current_time()) == 0
            victims_peer = held.peer
            assert a.host.scores.points(victims_peer, trio.current_time()) == 0

    run(test)


@pytest.mark.slow
def test_forged_adverts_by_gossip_cost_the_forwarder_and_travel_no_further() -> None:
    async def test() -> None:
        registry = Registry()
        victim = registry.register(secret(77))
        async with nodes(3, registry) as (liar, a, b):
            for node in (liar, a, b):
                node.advertising.update(ONLINE)
            await connect(liar.host, a.host)
            await connect(a.host, b.host)
            assert liar.advertising._gossip is not None
            gossip = liar.advertising._gossip
            await until(lambda: gossip.followers(topic_of(BASE)))
            await trio.sleep(1.2)  # a heartbeat of the mesh, which has no event
            gossip._judge = lambda data, sender: True
            await gossip.publish(topic_of(BASE), signed(secret(78), victim, now=now()).pack())
            await points(a, liar.host.id, Fault.FORGED.value)
            assert a.advertising.table.get(victim) is None
            assert b.advertising.table.get(victim) is None
            assert b.host.scores.points(a.host.id, trio.current_time()) == 0

    run(test)


def test_a_validator_that_raises_ends_nothing_and_counts_as_no() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(2, registry) as (a, b):
            for node in (a, b):
                node.advertising.update(ONLINE)
                await node.advertising.publish()
            await connect(a.host, b.host)
            raised = []

            def fail(_data: bytes, _sender: str) -> bool:
                raised.append(1)
                raise KeyError("a bug")

            assert b.advertising._gossip is not None
            assert a.advertising._gossip is not None
            b.advertising._gossip._judge = fail
            gossip = a.advertising._gossip
            await until(lambda: gossip.followers(topic_of(BASE)))

            async def repeat() -> None:
                while not raised:
                    await a.advertising.publish()
                    await trio.sleep(0.2)

            with trio.fail_after(10):
                await repeat()
            assert not b.advertising._gossip._validate(ID.from_base58(a.host.id), rpc_pb2.Message(data=b"x")), (
                "what cannot be judged is not handed on; contained tasks alone would not say so"
            )
            heard = len(raised)
            with trio.fail_after(10):
                while len(raised) < heard + 2:
                    await a.advertising.publish()
                    await trio.sleep(0.2)
            assert await a.advertising.fetch(b.host.id) >= 0
            assert b.host.is_connected(a.host.id)

    run(test)


def test_a_bug_in_a_services_task_ends_the_task(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        from libp2p.tools.anyio_service import Service

        ended = trio.Event()

        class Buggy(Service):
            async def run(self) -> None:
                self.manager.run_task(self.fail)
                self.manager.run_daemon_task(self.fail_often)
                await self.manager.wait_finished()

            async def fail(self) -> None:
                raise KeyError("a bug")

            lives = 0

            async def fail_often(self) -> None:
                self.lives += 1
                if self.lives == 2:
                    ended.set()
                raise KeyError("a bug")

        from openlora_node.network.services import running

        service = Buggy()
        async with running(service):
            await ended.wait()
            assert isinstance(service.manager, ContainedManager)
            assert service.manager.is_running

    run(test)


def test_a_service_that_ends_by_itself_ends_what_relies_on_it() -> None:
    async def test() -> None:
        async with hosts(1) as (a,):
            await a._swarm.manager.stop()
            await trio.sleep_forever()

    with pytest.raises(RuntimeError, match="Swarm ended"):
        run(test, 5)


def test_gossip_knows_messages_by_their_content() -> None:
    async def test() -> None:
        async with nodes(1, Registry()) as (a,):
            gossip = a.advertising._gossip
            assert gossip is not None
            ids = [
                gossip._pubsub.get_message_id(rpc_pb2.Message(data=data, seqno=seqno, from_id=b"peer"))
                for data, seqno in ((b"x", b"1"), (b"x", b"2"), (b"y", b"2"))
            ]
            assert ids[0] == ids[1] != ids[2]  # libp2p's own counters repeat after a quick restart
            assert gossip._router.heartbeat_interval == 1

    run(test)


def test_questions_of_one_peer_are_rationed() -> None:
    async def test() -> None:
        async with nodes(2, Registry()) as (a, b):
            await connect(a.host, b.host)
            stream = await a.host.open(b.host.id, ADVERT)
            answers = []
            with suppress(OpenLoraError):
                for _ in range(60):
                    answers.append(await stream.ask(GetAdverts(), 5))
            assert 20 <= len(answers) <= 35
            await points(b, a.host.id, Fault.FLOOD.value)

    run(test)


def test_a_million_adapters_are_listed_in_bounded_pages_or_refused() -> None:
    async def test() -> None:
        async with nodes(2, Registry()) as (a, b):
            endless = [hashlib.sha256(bytes([n])).digest() for n in range(256)]

            async def serve(stream: FramedStream[AdvertMessage]) -> None:
                page = 0
                while await stream.receive() is not None:
                    ids = tuple(sorted(page.to_bytes(4, "big") + e[4:] for e in endless))
                    await stream.send(Adapters(ids=ids, more=True))
                    page += 1

            b.host.serve(ADVERT, serve)
            await connect(a.host, b.host)
            assert len(await a.advertising.adapters_of(b.host.id, most=256)) == 256
            with pytest.raises(OpenLoraError):
                a.advertising.update(replace(ONLINE, adapters=frozenset(adapter(n) for n in range(20_000))))

    run(test)


def test_a_gateway_listens_and_says_nothing() -> None:
    async def test() -> None:
        registry = Registry()
        async with nodes(1, registry) as (a,), AsyncExitStack() as stack:
            a.advertising.update(ONLINE)
            await a.advertising.publish()
            host = await stack.enter_async_context(open_host(fresh_secret(), QUICK, registry))
            gateway = await stack.enter_async_context(open_advertising(host, AdvertOptions(DOMAIN), registry))
            gateway.update(OwnState(base_models=(BASE,)))
            await connect(host, a.host)
            await until(lambda: gateway.table.get(a.node) is not None)
            assert await gateway.publish() is None
            assert len(a.advertising.table) == 1
            assert gateway.known_filter(ZERO32) is None

    run(test)
