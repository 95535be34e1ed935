"""What a network makes of its reachability: the adverts that go out, and faults that stay inside."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from openlora_node.network import reach as reach_module
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.bridge import BridgeState
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.reach import Reachability, ReachOptions
from openlora_node.network.reach_policy import Vote
from openlora_node.network.service import Network
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.structs import Reach
from support.network_adverts import BASE, DOMAIN, ONLINE
from support.network_peers import QUICK, Registry, fresh_secret


def network(registry: Registry, secret: bytes, node: bytes | None = None, bootstrap: tuple[str, ...] = ()) -> Network:
    key = LocalSigner(secret) if node is not None else None
    return Network(
        secret,
        QUICK,
        registry,
        adverts=AdvertOptions(DOMAIN, debounce=0.1, node=node, key=key),
        directory=DirectoryOptions(DOMAIN, bootstrap=bootstrap),
        reach=ReachOptions(wanted=node is not None),
    )


async def test_an_advert_tells_what_peers_found_whatever_the_daemon_says() -> None:
    registry, secret = Registry(), fresh_secret()
    node = registry.register(secret)
    reader = network(registry, fresh_secret())
    await reader.start()
    writer = network(registry, secret, node, await reader.addresses())
    await writer.start()
    try:
        await reader.follow(BASE)
        writer.advertise(replace(ONLINE, reach=Reach.RELAYED, addresses=("/ip4/9.9.9.9/tcp/1",)))
        told = tuple(address.partition("/p2p/")[0] for address in await writer.addresses())
        async with asyncio.timeout(40):
            while True:
                adverts = await reader.nodes(BASE)
                if adverts and adverts[0].value.reach == Reach.DIRECT:
                    break
                await asyncio.sleep(0.02)
        assert adverts[0].value.addresses == told
        assert (await writer.reach(decided=True)) is not None
    finally:
        await writer.stop()
        await reader.stop()


async def test_a_fault_in_it_leaves_the_host_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "RESTART_S", 0.05)
    real, faults = Reachability._round, 0

    async def round_(self: Reachability) -> tuple[Vote, ...]:
        nonlocal faults
        faults += 1
        if faults == 1:
            raise KeyError("a bug")
        return await real(self)

    monkeypatch.setattr(Reachability, "_round", round_)
    other = network(Registry(), fresh_secret())
    await other.start()
    own = network(Registry(), fresh_secret(), None, await other.addresses())
    try:
        await own.start()
        async with asyncio.timeout(40):
            state = await own.reach(decided=True)
        assert state is not None
        assert state.reach is Reach.DIRECT
        assert faults > 1
        assert (own.state, own.restarts, other.restarts) == (BridgeState.RUNNING, 0, 0)
    finally:
        await own.stop()
        await other.stop()
