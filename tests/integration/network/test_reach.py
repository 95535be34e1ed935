"""Dial-backs, relays and hole punching between hosts on 127.0.0.1, libp2p's own implementations as third parties."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.autonat.autonat import AutoNATService
from libp2p.host.autonat.pb.autonat_pb2 import Message as AutoNat
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from openlora_node.network import holepunch as holepunch_module
from openlora_node.network import nat as nat_module
from openlora_node.network import reach as reach_module
from openlora_node.network import reach_policy as reach_policy_module
from openlora_node.network.buckets import Allowance
from openlora_node.network.directory import Directory, DirectoryOptions, open_directory
from openlora_node.network.holepunch import HolePuncher
from openlora_node.network.host import Host
from openlora_node.network.identity import Peer
from openlora_node.network.nat import AUTONAT_ID, DialBack
from openlora_node.network.nat_wire import dial_request, dial_response, pack_addresses, receive_message, send_message
from openlora_node.network.opening import open_host
from openlora_node.network.reach import Reachability, ReachOptions, open_reach
from openlora_node.network.reach_addresses import Circuit
from openlora_node.network.reach_policy import Answer
from openlora_node.network.relay import RelayClient
from openlora_node.network.relay_hop import HOP_ID, STOP_ID, HopService
from openlora_node.network.relay_table import RelayLimits
from openlora_node.network.relay_transport import circuit_connection, is_relayed
from openlora_node.network.stream import BROKEN, FramedStream
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import ADVERT, AdvertMessage, Adverts, GetAdverts
from openlora_node.protocol.structs import Reach
from support.network_adverts import DOMAIN
from support.network_peers import QUICK, Registry, connect, fresh_secret, hosts, run, until

LOOPBACK = "127.0.0.1"


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def request(host: Host, peer: str, protocol: str, message: Any, kind: Any) -> Any:
    """One message and its answer on a raw stream."""
    stream = await host.inner.new_stream(ID.from_base58(peer), [TProtocol(protocol)])
    await send_message(stream, message)
    return await receive_message(stream, kind)


def echo(host: Host) -> None:
    """Answer on the advert protocol."""

    async def serve(stream: FramedStream[AdvertMessage]) -> None:
        while await stream.receive() is not None:
            await stream.send(Adverts(adverts=()))

    host.serve(ADVERT, serve)


async def ask(host: Host, peer: str) -> None:
    """A request and its answer."""
    stream = await host.open(peer, ADVERT)
    assert await stream.ask(GetAdverts(known=()), 10) == Adverts(adverts=())
    await stream.close()


# dial-backs


def test_a_peer_is_dialled_back_and_a_connection_that_exists_proves_nothing() -> None:
    async def test() -> None:
        async with hosts(2) as (asker, server):
            dial_back, _ = DialBack(asker), DialBack(server)
            await connect(asker, server)
            vote = await dial_back.ask(server.id, asker.addresses(), LOOPBACK)
            assert (vote.answer, vote.address, vote.ip) == (Answer.REACHED, asker.addresses()[0], LOOPBACK)
            nowhere = (f"/ip4/{LOOPBACK}/tcp/{closed_port()}",)
            assert (await dial_back.ask(server.id, nowhere, LOOPBACK)).answer is Answer.FAILED
            assert (await dial_back.ask(server.id, (*nowhere, *asker.addresses()), LOOPBACK)).answer is Answer.REACHED

    run(test)


def test_dial_backs_work_over_ipv6() -> None:
    async def test() -> None:
        async with hosts(2, replace(QUICK, listen=("/ip6/::1/tcp/0",))) as (asker, server):
            dial_back, _ = DialBack(asker), DialBack(server)
            await connect(asker, server)
            vote = await dial_back.ask(server.id, asker.addresses(), "::1")
            assert (vote.answer, vote.ip) == (Answer.REACHED, "::1")

    run(test)


def test_another_hosts_port_is_no_proof() -> None:
    async def test() -> None:
        async with hosts(3) as (asker, server, other):
            dial_back, _ = DialBack(asker), DialBack(server)
            await connect(asker, server)
            assert (await dial_back.ask(server.id, other.addresses(), LOOPBACK)).answer is Answer.FAILED

    run(test)


def test_no_other_ip_than_the_askers_is_dialled() -> None:
    async def test() -> None:
        victim = socket.create_server(("127.0.0.2", 0))
        victim.setblocking(False)
        async with hosts(2) as (asker, server):
            DialBack(server)
            await connect(asker, server)
            port, own = victim.getsockname()[1], asker.inner.get_id().to_bytes()
            addresses = (f"/ip4/127.0.0.2/tcp/{port}", f"/dns/localhost/tcp/{port}", f"/ip6/::1/tcp/{port}")
            reply = await request(asker, server.id, AUTONAT_ID, dial_request(own, addresses), AutoNat)
            assert reply.dialResponse.status == AutoNat.E_DIAL_REFUSED
        with victim, pytest.raises(BlockingIOError):
            victim.accept()

    run(test)


def test_nobody_asks_in_anothers_name_and_bad_bytes_cost_points() -> None:
    async def test() -> None:
        async with hosts(3) as (asker, server, other):
            DialBack(server)
            await connect(asker, server)
            foreign = dial_request(other.inner.get_id().to_bytes(), other.addresses())
            reply = await request(asker, server.id, AUTONAT_ID, foreign, AutoNat)
            assert reply.dialResponse.status == AutoNat.E_BAD_REQUEST
            await until(lambda: server.scores.points(asker.id, trio.current_time()) > 0)
            before = server.scores.points(asker.id, trio.current_time())
            for junk in (b"\xff\xff\x7f", b"\x80" * 30):
                stream = await asker.inner.new_stream(ID.from_base58(server.id), [TProtocol(AUTONAT_ID)])
                await stream.write(junk)
                with pytest.raises(OpenLoraError):
                    await receive_message(stream, AutoNat)
            await until(lambda: server.scores.points(asker.id, trio.current_time()) > before + 30)
            assert server.is_connected(asker.id)

    run(test)


def test_dial_backs_are_rationed_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_module, "PER_PEER", Allowance(rate=0.0, burst=2.0))

    async def test() -> None:
        async with hosts(2) as (asker, server):
            dial_back, _ = DialBack(asker), DialBack(server)
            await connect(asker, server)
            votes = [await dial_back.ask(server.id, asker.addresses(), LOOPBACK) for _ in range(3)]
            assert [vote.answer for vote in votes] == [Answer.REACHED, Answer.REACHED, Answer.REFUSED]
            assert votes[2].reason == "asked too often"

    run(test)


def test_libp2ps_own_autonat_understands_both_sides() -> None:
    async def test() -> None:
        async with hosts(3) as (ours, theirs, third):
            DialBack(ours)
            service = AutoNATService(theirs.inner)
            await connect(theirs, ours)
            status, reached = await service.query_server(ID.from_base58(ours.id))
            assert status == AutoNat.OK
            assert reached is not None
            await connect(third, theirs)
            nowhere = (f"/ip4/{LOOPBACK}/tcp/{closed_port()}",)
            vote = await DialBack(third).ask(theirs.id, nowhere, LOOPBACK)
            assert vote.answer is Answer.REACHED  # it takes the connection that exists for proof: why it is not used

    run(test)


def test_a_status_of_zero_is_written_out() -> None:
    assert dial_response(AutoNat.OK).SerializeToString() == b"\x08\x01\x1a\x02\x08\x00"
    assert dial_request(b"", ()).SerializeToString()[:2] == b"\x08\x00"


# relays


@dataclass
class Relayed:
    """A relay with one slot holder, and a dialer."""

    relay: Host
    holder: Host
    dialer: Host
    hop: HopService
    place: str
    """The slot holder's circuit address."""
    came: list[str]
    holds: Callable[[str], bool]


@asynccontextmanager
async def relayed(limits: RelayLimits | None = None, *, takes: bool = True) -> AsyncIterator[Relayed]:
    """Three hosts: the holder has a slot and echoes; the dialer knows the relay's address only."""
    async with hosts(3) as (relay, holder, dialer):
        hop = HopService(relay, limits or RelayLimits(), lambda: True)
        came: list[str] = []

        async def note(peer: Peer) -> None:
            came.append(peer.id)

        client = RelayClient(holder, lambda _: takes, note)
        RelayClient(dialer, lambda _: False, note)
        echo(holder)
        await connect(holder, relay)
        reservation = await client.reserve(relay.id)
        yield Relayed(relay, holder, dialer, hop, reservation.addresses[0], came, lambda _: takes)


def test_requests_run_through_a_relay_end_to_end() -> None:
    async def test() -> None:
        async with relayed() as world:
            assert world.place == f"{world.relay.addresses()[0]}/p2p/{world.relay.id}/p2p-circuit"
            peer = await world.dialer.connect(world.holder.id, [world.place])
            assert peer.id == world.holder.id
            assert not world.dialer.connections.is_direct(world.holder.id)
            assert world.dialer.connections.ip_of(world.holder.id) is None
            await ask(world.dialer, world.holder.id)
            assert world.came == [world.dialer.id]
            assert [is_relayed(c) for c in world.holder.connections.relayed(world.dialer.id)] == [True]
            assert world.hop.table.circuits == 1
            world.dialer.drop(world.holder.id)
            await until(lambda: world.hop.table.circuits == 0)
            await until(lambda: not world.holder.is_connected(world.dialer.id))
            assert world.relay.connections.is_direct(world.holder.id)

    run(test)


def test_libp2ps_own_client_reserves_and_dials_here() -> None:
    from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
    from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
    from libp2p.relay.circuit_v2.transport import CircuitV2Transport
    from libp2p.tools.anyio_service import background_trio_service

    async def test() -> None:
        async with hosts(2) as (relay, target), trio.open_nursery() as nursery:
            hop = HopService(relay, RelayLimits(), lambda: True)
            protocol = CircuitV2Protocol(target.inner, allow_hop=False)
            async with background_trio_service(protocol):
                await protocol.event_started.wait()
                roles = RelayConfig(roles=RelayRole.STOP | RelayRole.CLIENT)
                transport = CircuitV2Transport(target.inner, protocol, roles)
                echo(target)
                await connect(target, relay)
                stream = await target.inner.new_stream(ID.from_base58(relay.id), [TProtocol(HOP_ID)])
                assert await transport.reserve(stream, ID.from_base58(relay.id), nursery)
                assert hop.table.peers() == (target.id,)
                async with hosts(1) as (dialer,):
                    RelayClient(dialer, lambda _: False, None)  # type: ignore[arg-type]
                    place = f"{relay.addresses()[0]}/p2p/{relay.id}/p2p-circuit"
                    await dialer.connect(target.id, [place])
                    await ask(dialer, target.id)
                    assert not dialer.connections.is_direct(target.id)
                nursery.cancel_scope.cancel()

    run(test)


def test_a_circuit_needs_a_reservation_that_lives() -> None:
    async def test() -> None:
        async with relayed() as world:
            await connect(world.dialer, world.relay)
            stranger = HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=world.dialer.inner.get_id().to_bytes()))
            reply = await request(world.holder, world.relay.id, HOP_ID, stranger, HopMessage)
            assert reply.status == Status.NO_RESERVATION
            world.hop.table.release(world.holder.id)
            with pytest.raises(OpenLoraError) as error:
                await world.dialer.connect(world.holder.id, [world.place])
            assert error.value.code is ErrorCode.NODE_LOST

    run(test)


def test_a_slot_is_the_askers_own_whatever_name_it_writes() -> None:
    async def test() -> None:
        async with relayed() as world:
            await connect(world.dialer, world.relay)
            other = PeerId(id=world.relay.inner.get_id().to_bytes())
            reply = await request(
                world.dialer, world.relay.id, HOP_ID, HopMessage(type=HopMessage.RESERVE, peer=other), HopMessage
            )
            assert reply.status == Status.OK
            assert set(world.hop.table.peers()) == {world.holder.id, world.dialer.id}

    run(test)


@pytest.mark.parametrize("limits", [RelayLimits(circuit_bytes=20_000), RelayLimits(circuit_s=1)])
def test_a_circuit_ends_at_its_limit_and_its_relay_lives_on(limits: RelayLimits) -> None:
    async def test() -> None:
        async with relayed(limits) as world:
            await world.dialer.connect(world.holder.id, [world.place])
            with trio.fail_after(30):
                while world.dialer.is_connected(world.holder.id):
                    try:
                        stream = await world.dialer.open(world.holder.id, ADVERT)
                        await stream.send(GetAdverts(known=(bytes(40),) * 200))
                        await stream.receive(5)
                    except OpenLoraError:
                        await trio.sleep(0.01)
            assert world.hop.table.circuits == 0
            assert world.relay.connections.is_direct(world.holder.id)

    run(test)


def test_a_host_that_expects_no_circuit_takes_none() -> None:
    async def test() -> None:
        async with relayed(takes=False) as world:
            with pytest.raises(OpenLoraError):
                await world.dialer.connect(world.holder.id, [world.place])
            assert world.came == []
            assert not world.holder.is_connected(world.dialer.id)

    run(test)


def test_a_relay_cannot_pass_one_peer_off_as_another() -> None:
    async def test() -> None:
        async with relayed() as world, hosts(1) as (liar,):
            victim = world.relay.inner.get_id().to_bytes()
            await connect(liar, world.holder)  # plays the relay, and names a third as the one who comes
            stream = await liar.inner.new_stream(ID.from_base58(world.holder.id), [TProtocol(STOP_ID)])
            await send_message(stream, StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=victim)))
            reply = await receive_message(stream, StopMessage)
            assert reply.status == Status.OK
            upgrade = liar._swarm.upgrade_outbound_raw_conn
            raw = circuit_connection(stream, Circuit("/ip4/1.2.3.4/tcp/5", liar.id, world.holder.id), is_initiator=True)
            with trio.move_on_after(10):
                with suppress(*BROKEN):
                    await upgrade(raw, ID.from_base58(world.holder.id))
            await until(lambda: not world.holder.connections.relayed(liar.id))
            assert world.came == []
            assert not world.holder.connections.relayed(world.relay.id)

    run(test)


def test_there_are_no_relays_behind_relays() -> None:
    async def test() -> None:
        async with relayed() as world:
            HopService(world.holder, RelayLimits(), lambda: True)
            await world.dialer.connect(world.holder.id, [world.place])
            reply = await request(
                world.dialer, world.holder.id, HOP_ID, HopMessage(type=HopMessage.RESERVE), HopMessage
            )
            assert reply.status == Status.PERMISSION_DENIED

    run(test)


# hole punching


def test_a_relayed_connection_becomes_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holepunch_module, "RETIRE_AFTER_S", 0.2)

    async def test() -> None:
        async with hosts(3) as (relay, holder, dialer):
            HopService(relay, RelayLimits(), lambda: True)
            starter = HolePuncher(holder, holder.addresses)
            HolePuncher(dialer, dialer.addresses)
            client = RelayClient(holder, lambda _: True, starter.start)
            RelayClient(dialer, lambda _: False, starter.start)
            echo(holder)
            await connect(holder, relay)
            place = (await client.reserve(relay.id)).addresses[0]
            await dialer.connect(holder.id, [place])
            await until(lambda: dialer.connections.is_direct(holder.id) and holder.connections.is_direct(dialer.id))
            await ask(dialer, holder.id)
            await until(lambda: (starter.succeeded, starter.failed) == (1, 0))
            await until(lambda: not dialer.connections.relayed(holder.id))  # nothing runs on it any more
            await ask(dialer, holder.id)

    run(test)


def test_what_cannot_be_punched_stays_relayed_and_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holepunch_module, "PUNCH_S", 0.3)

    async def test() -> None:
        async with hosts(3) as (relay, holder, dialer):
            HopService(relay, RelayLimits(), lambda: True)
            nowhere = (f"/ip4/{LOOPBACK}/tcp/{closed_port()}",)
            starter = HolePuncher(holder, lambda: nowhere)
            HolePuncher(dialer, lambda: nowhere)
            client = RelayClient(holder, lambda _: True, starter.start)
            RelayClient(dialer, lambda _: False, starter.start)
            echo(holder)
            await connect(holder, relay)
            place = (await client.reserve(relay.id)).addresses[0]
            await dialer.connect(holder.id, [place])
            await ask(dialer, holder.id)
            await until(lambda: starter.failed == 1)
            await ask(dialer, holder.id)
            assert not dialer.connections.is_direct(holder.id)

    run(test)


def test_a_punch_leaves_from_the_listeners_port_even_where_it_listens_locally() -> None:
    async def test() -> None:
        async with hosts(1) as (host,):
            (port,) = host.ports()
            assert host.source("/ip4/9.9.9.9/tcp/1") == ("0.0.0.0", port)
            assert host.source("/ip4/127.0.0.1/tcp/1") == (LOOPBACK, port)
            assert host.source("/ip6/2620:fe::fe/tcp/1") is None

    run(test)


def test_punches_that_others_start_are_rationed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holepunch_module, "PER_PEER", Allowance(rate=0.0, burst=1.0))
    monkeypatch.setattr(holepunch_module, "PUNCH_S", 0.1)

    async def test() -> None:
        async with relayed() as world:
            nowhere = (f"/ip4/{LOOPBACK}/tcp/{closed_port()}",)
            HolePuncher(world.holder, lambda: nowhere)
            await world.dialer.connect(world.holder.id, [world.place])
            hello = HolePunch(type=HolePunch.CONNECT, ObsAddrs=pack_addresses(nowhere))
            reply = await request(world.dialer, world.holder.id, holepunch_module.DCUTR_ID, hello, HolePunch)
            assert reply.type == HolePunch.CONNECT
            with pytest.raises(OpenLoraError):
                await request(world.dialer, world.holder.id, holepunch_module.DCUTR_ID, hello, HolePunch)
            await ask(world.dialer, world.holder.id)

    run(test)


# all of it


@asynccontextmanager
async def reachable(
    bootstrap: tuple[Host, ...] = (), options: ReachOptions | None = None
) -> AsyncIterator[tuple[Host, Directory, Reachability]]:
    """A host that looks after its reachability."""
    known = tuple(f"{host.addresses()[0]}/p2p/{host.id}" for host in bootstrap)
    async with (
        open_host(fresh_secret(), QUICK, Registry()) as host,
        open_directory(host, DirectoryOptions(DOMAIN, bootstrap=known), Registry()) as directory,
        open_reach(host, options or ReachOptions(), None, directory) as reach,
    ):
        yield host, directory, reach


def test_a_host_learns_that_it_is_direct_and_tells_the_address_that_peers_confirmed() -> None:
    async def test() -> None:
        async with reachable() as (first, _, _), reachable((first,)) as (host, _, reach):
            await reach.decided()
            state = reach.state()
            assert state.reach is Reach.DIRECT
            assert state.told == host.addresses()
            assert state.observed == (LOOPBACK,)
            await until(lambda: [str(a) for a in host.told()] == [f"{host.addresses()[0]}/p2p/{host.id}"])

    run(test)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The own IPs known at each round of dial-backs; one peer is enough to settle, and nothing is paced."""
    made: list[tuple[str, ...]] = []
    real = Reachability._round

    async def round_(self: Reachability) -> Any:
        made.append(self._interfaces)
        return await real(self)

    monkeypatch.setattr(Reachability, "_round", round_)
    monkeypatch.setattr(reach_policy_module, "ENOUGH_VOTES", 1)
    for name in ("PACE_S", "SETTLE_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(reach_module, name, 0.02)
    monkeypatch.setattr(nat_module, "PER_PEER", Allowance(rate=100.0, burst=100.0))
    return made


def test_peers_are_asked_again_regularly(rounds: list[tuple[str, ...]]) -> None:
    async def test() -> None:
        async with hosts(1) as (server,):
            DialBack(server)
            async with reachable((server,), ReachOptions(recheck=0.1)) as (_, _, reach):
                await reach.decided()
                before = len(rounds)
                await until(lambda: len(rounds) >= before + 3)
                assert reach.state().reach is Reach.DIRECT

    run(test)


def test_peers_are_asked_again_when_an_own_address_changes(
    rounds: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces = ["192.0.2.1"]
    monkeypatch.setattr(reach_module, "interface_ips", lambda: tuple(interfaces))

    async def test() -> None:
        async with hosts(1) as (server,):
            DialBack(server)
            async with reachable((server,)) as (_, _, reach):
                await until(lambda: reach.state().verdict.is_settled)
                interfaces[0] = "192.0.2.2"
                await until(lambda: ("192.0.2.2",) in rounds)  # the next regular look is ten minutes away

    run(test)


@pytest.mark.slow
def test_a_host_nobody_reaches_takes_slots_leaves_the_directory_and_comes_back() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            serve = ReachOptions(relay="serve")
            relays: list[Host] = []
            for _ in range(3):
                relays.append((await stack.enter_async_context(reachable(tuple(relays), serve)))[0])
            nowhere = f"/ip4/{LOOPBACK}/tcp/{closed_port()}"
            hidden = ReachOptions(announce=(nowhere,))
            host, directory, reach = await stack.enter_async_context(reachable(tuple(relays), hidden))
            await until(lambda: len(reach.state().relays) == 2)
            state = reach.state()
            assert state.reach is Reach.RELAYED
            assert nowhere not in state.told
            assert all(address.endswith("/p2p-circuit") for address in state.told)
            assert directory._table.mode.value == "CLIENT"
            assert directory.size() > 0
            lost = next(relay for relay in relays if relay.id in state.relays)
            host.drop(lost.id)
            await until(lambda: len(reach.state().relays) == 2 and lost.id not in reach.state().relays)
            reach._options = replace(hidden, announce=())  # the operator corrects it
            reach.look_now()
            await until(lambda: reach.state().reach is Reach.DIRECT)
            await until(lambda: not reach.state().relays)
            assert directory._table.mode.value == "SERVER"
            assert reach.state().told == host.addresses()

    run(test)


def test_random_bytes_on_every_protocol_do_no_harm() -> None:
    async def test() -> None:
        async with reachable((), ReachOptions(relay="serve")) as (host, _, _), hosts(1) as (peer,):
            await connect(peer, host)
            for protocol in (AUTONAT_ID, HOP_ID, STOP_ID, holepunch_module.DCUTR_ID):
                for junk in (b"\x00", b"\x01\xff", b"\xff" * 64, b"\x10" + bytes(16), b"\x90\x4e" + b"A" * 10_000):
                    stream: INetStream = await peer.inner.new_stream(ID.from_base58(host.id), [TProtocol(protocol)])
                    try:
                        await stream.write(junk)
                        await stream.close()
                    except BROKEN:
                        continue
                    if host.scores.is_denied(peer.id, trio.current_time()):
                        break
                host.scores = type(host.scores)()
                if not peer.is_connected(host.id):
                    await connect(peer, host)
            async with hosts(1) as (other,):
                await connect(other, host)
                assert (await DialBack(other).ask(host.id, other.addresses(), LOOPBACK)).answer is Answer.REACHED

    run(test)
