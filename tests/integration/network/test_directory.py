"""The directory between running hosts: records, providers, bootstrap, peers remembered, no peers at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.provider_store import ProviderRecord
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.utils import InvalidRecordType
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from openlora_node.network import directory as directory_module
from openlora_node.network.adverts import read_advert
from openlora_node.network.directory import (
    KAD_ID,
    Directory,
    DirectoryOptions,
    RecordValidator,
    open_directory,
    provider_key,
    record_key,
)
from openlora_node.network.host import Host
from openlora_node.network.identity import peer_id_of
from openlora_node.network.opening import open_host
from openlora_node.network.peerfile import KnownPeer, PeerFile
from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.structs import NodeState
from support.network_adverts import BASE, DOMAIN, NOW, adapter, signed
from support.network_peers import QUICK, Registry, connect, fresh_secret, hosts, run, secret, until


@dataclass
class Member:
    host: Host
    directory: Directory
    secret: bytes


@asynccontextmanager
async def members(count: int, registry: Registry, **options: Any) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            secret = fresh_secret()
            host = await stack.enter_async_context(open_host(secret, QUICK, registry))
            settings = DirectoryOptions(DOMAIN, first_retry=0.1, **options)
            directory = await stack.enter_async_context(open_directory(host, settings, registry, lambda: NOW))
            made.append(Member(host, directory, secret))
        yield made


async def joined(group: list[Member]) -> None:
    """Connect all to the first, and wait until all tables know of someone."""
    for member in group[1:]:
        await connect(member.host, group[0].host)
    await until(lambda: all(member.directory.size() for member in group))


@pytest.mark.slow
def test_who_serves_a_base_model_is_found_by_those_who_never_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "PROVIDE_PACE_S", 0.1)

    async def test() -> None:
        async with members(4, Registry()) as (first, node, other, seeker):
            await joined([first, node, other, seeker])
            assert await node.directory.provide(BASE), "another peer confirms it"
            found = dict(await seeker.directory.providers(BASE))
            assert set(found) == {node.host.id}
            assert await seeker.directory.providers(adapter(9)) == ()
            await seeker.directory.find(BASE)
            assert seeker.host.is_connected(node.host.id)

    run(test)


def test_providers_are_asked_of_others_and_not_of_the_own_cache() -> None:
    async def test() -> None:
        async with members(2, Registry()) as (a, b):
            await joined([a, b])
            gone = PeerInfo(ID.from_base58("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"), [])
            key = bytes.fromhex(provider_key(BASE))
            a.directory._table.provider_store.providers[key] = {"x": ProviderRecord(gone)}
            assert await a.directory.providers(BASE) == ()
            assert list(a.directory._table.provider_store.providers[key]) == ["x"], "others may still ask for it"

    run(test)


NO_ADDRESS = Multiaddr(b"\n\x00")
"""Made of bytes that no codec reads: its text raises."""
IDENTIFY_PUSH = "/ipfs/id/push/1.0.0"


def test_an_address_that_is_none_in_an_answer_is_left_out() -> None:
    async def test() -> None:
        async with members(2, Registry()) as (a, b):
            await joined([a, b])
            key = bytes.fromhex(provider_key(BASE))
            good = Multiaddr("/ip4/127.0.0.1/tcp/9")
            gone = PeerInfo(ID.from_base58(peer_id_of(fresh_secret())), [NO_ADDRESS, good])
            b.directory._table.provider_store.add_provider(key, gone)
            assert dict(await a.directory.providers(BASE)) == {gone.peer_id.to_base58(): (str(good),)}
            await a.directory.find(BASE)

    run(test)


def test_an_address_that_is_none_pushed_by_a_stranger_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One identify push of five bytes ended the host at the next writing of peers."""
    monkeypatch.setattr(directory_module, "SAVE_INTERVAL_S", 0.1)

    async def test() -> None:
        file = PeerFile(tmp_path / "peers.json")
        async with (
            members(1, Registry(), peers_file=file.path) as (victim,),
            members(2, Registry()) as (stranger, other),
        ):
            for each in (stranger, other):
                await connect(each.host, victim.host)
            stream = await stranger.host.inner.new_stream(ID.from_base58(victim.host.id), [TProtocol(IDENTIFY_PUSH)])
            await stream.write(b"\x04\x12\x02\n\x00")
            await stream.close()
            store = victim.host.inner.get_peerstore()
            peer = ID.from_base58(stranger.host.id)
            await until(lambda: NO_ADDRESS in store.addrs(peer))
            file.path.unlink(missing_ok=True)
            await until(file.path.exists)
            assert victim.host.is_connected(other.host.id)
            victim.host.drop(stranger.host.id)
            await victim.host.connect(stranger.host.id, stranger.host.addresses())

    run(test)


@pytest.mark.slow
def test_records_are_paced_so_that_receivers_take_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "PROVIDE_PACE_S", 0.3)

    async def test() -> None:
        async with members(2, Registry()) as (a, b):
            await joined([a, b])
            began = trio.current_time()
            for n in range(4):
                assert await a.directory.provide(adapter(n))
            assert trio.current_time() - began >= 3 * 0.29

    run(test)


def test_a_nodes_record_is_found_fresh_and_only_its_own_counts() -> None:
    async def test() -> None:
        registry = Registry()
        node = registry.register(secret(5))
        async with members(3, registry) as (a, b, c):
            await joined([a, b, c])
            old = read_advert(signed(secret(5), node, seq=1).pack(), NOW, DOMAIN, registry)
            new = read_advert(signed(secret(5), node, seq=2).pack(), NOW, DOMAIN, registry)
            await a.directory.publish(old)
            found = await c.directory.record(node)
            assert found is not None
            assert found.value.seq == 1
            assert found.peer == old.peer
            await a.directory.publish(new)
            again = await c.directory.record(node)
            assert again is not None
            assert again.value.seq == 2
            with pytest.raises(ProtocolError):
                await a.directory.publish(old)
            held = c.directory._table.value_store
            held.put(record_key(node).encode(), old.packed)  # what c heard last, before the node wrote again
            fresh = await c.directory.record(node)
            assert fresh is not None
            assert fresh.value.seq == 2, "others are asked, whatever is held here"
            for other in (a, b):
                other.directory._table.value_store.put(record_key(node).encode(), old.packed)
            held.put(record_key(node).encode(), new.packed)
            newest = await c.directory.record(node)
            assert newest is not None
            assert newest.value.seq == 2, "others' older word does not replace what is held here"
            registry.nodes.clear()
            assert await c.directory.record(node) is None

    run(test)


def test_the_validator_takes_the_nodes_own_word_only() -> None:
    registry = Registry()
    node, other = registry.register(secret(5)), registry.register(secret(6))
    validator = RecordValidator(DOMAIN, registry, lambda: NOW)
    good = signed(secret(5), node, seq=3).pack()
    validator.validate(record_key(node), good)
    for key, value in (
        (record_key(other), good),
        (record_key(node), signed(secret(6), node).pack()),
        (record_key(node), signed(secret(5), node, now=NOW - 1000).pack()),
        (record_key(node), good[:-1]),
        (record_key(node), b""),
    ):
        with pytest.raises(InvalidRecordType):
            validator.validate(key, value)
    newer = signed(secret(5), node, seq=4).pack()
    assert validator.select(record_key(node), [good, b"junk", newer]) == 2


def test_the_table_is_this_protocols_own() -> None:
    async def test() -> None:
        async with members(2, Registry()) as (a, b):
            await joined([a, b])
            protocols = a.host.inner.get_peerstore().get_protocols(ID.from_base58(b.host.id))
            assert KAD_ID in protocols
            assert "/ipfs/kad/1.0.0" not in protocols
            with pytest.raises(Exception, match=r"."):
                await a.host.inner.new_stream(ID.from_base58(b.host.id), [TProtocol("/ipfs/kad/1.0.0")])

    run(test)


def test_hosts_that_do_not_serve_hold_no_keys() -> None:
    async def test() -> None:
        async with members(1, Registry()) as (a,), members(1, Registry(), serve=False) as (hidden,):
            await connect(hidden.host, a.host)
            await until(lambda: hidden.directory.size() == 1)
            protocols = a.host.inner.get_peerstore().get_protocols(ID.from_base58(hidden.host.id))
            assert KAD_ID not in protocols
            assert a.directory.size() == 0

    run(test)


def test_a_host_starts_alone_and_joins_when_a_peer_appears() -> None:
    async def test() -> None:
        registry = Registry()
        key = fresh_secret()
        async with hosts(1) as (place,):
            address = place.addresses()[0]
        peer = peer_id_of(key)
        async with members(1, registry, bootstrap=(f"{address}/p2p/{peer}", "/ip4/127.0.0.1/tcp/1/p2p/junk")) as (a,):
            assert a.directory.degraded
            await trio.sleep(0.3)  # some attempts fail meanwhile
            async with open_host(key, replace(QUICK, listen=(address,)), registry):
                await until(lambda: a.host.is_connected(peer))
                assert not a.directory.degraded

    run(test)


def test_peers_come_from_the_file_and_from_the_chain(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosts(2) as (remembered, published):
            file = tmp_path / "peers.json"
            PeerFile(file).merge([KnownPeer(remembered.id, remembered.addresses(), 1)])
            registry = Registry(published=(f"{published.addresses()[0]}/p2p/{published.id}",))
            async with members(1, registry, peers_file=file) as (a,):
                await until(lambda: a.host.is_connected(remembered.id) and a.host.is_connected(published.id))
            assert {known.peer for known in PeerFile(file).read()} == {remembered.id, published.id}

    run(test)


def test_records_that_strangers_provide_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_PROVIDED_KEYS", 10)

    async def test() -> None:
        async with members(1, Registry()) as (a,):
            store = a.directory._table.provider_store
            own = b"own"
            store.providing_keys.add(own)
            for key in (own, *(bytes([n]) for n in range(50))):
                store.providers[key] = {}
            a.directory._bound()
            assert len(store.providers) == 10
            assert own in store.providers

    run(test)


def test_a_record_shown_as_an_advert_revives_nobody() -> None:
    from support.network_adverts import ONLINE, nodes

    async def test() -> None:
        registry = Registry()
        async with nodes(2, registry) as (a, b):
            a.advertising.update(ONLINE)
            assert a.advertising.record(3600) is None, "nothing was advertised yet"
            advert = await a.advertising.publish()
            record = a.advertising.record(3600)
            assert record is not None
            assert advert is not None
            assert record.value.state == NodeState.JOINING
            assert record.value.addresses == advert.value.addresses
            b.advertising.judge(advert.packed, "someone")
            b.advertising.judge(record.packed, "someone")
            assert b.advertising.table.get(a.node).value.seq == advert.value.seq  # type: ignore[union-attr]

    run(test)
