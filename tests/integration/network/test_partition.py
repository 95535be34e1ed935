"""Twenty nodes fall apart into two halves and find each other again by themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

from openlora_node.network import directory as directory_module
from openlora_node.network.announcing import Announcer, Pace
from openlora_node.network.directory import DirectoryOptions, open_directory
from support.network_adverts import BASE, DOMAIN, NOW, ONLINE, Node, nodes
from support.network_peers import CALM, Registry, connect, run, until

COUNT = 20


@dataclass
class Wall:
    """What lets no connection through between two halves, and a clock for all."""

    side: dict[str, int]
    up: bool = False
    now: float = float(NOW)

    def parts(self, a: str, b: str) -> bool:
        """Whether it stands between two peers."""
        return self.up and self.side.get(a) != self.side.get(b)


def build(monkeypatch: pytest.MonkeyPatch, wall: Wall) -> None:
    """Every dial of every host, libp2p's own included, meets the wall."""
    dial: Callable[..., Any] = Swarm._dial_with_retry

    async def dial_unless_parted(self: Swarm, address: Any, peer: ID, *rest: Any) -> Any:
        if wall.parts(self.get_peer_id().to_base58(), peer.to_base58()):
            raise SwarmException("no route")
        return await dial(self, address, peer, *rest)

    monkeypatch.setattr(Swarm, "_dial_with_retry", dial_unless_parted)


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_twenty_nodes_that_fell_apart_know_each_other_again_after_healing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "PROVIDE_PACE_S", 0.05)
    wall = Wall({})
    build(monkeypatch, wall)

    def live(node: Node) -> set[bytes]:
        return {advert.node for advert in node.advertising.table.live(BASE, wall.now)}

    async def test() -> None:
        registry = Registry()
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(
                nodes(COUNT, registry, CALM, clock=lambda: wall.now, debounce=0.05, reconcile=1.0)
            )
            halves = group[::2], group[1::2]
            wall.side = {node.host.id: side for side, half in enumerate(halves) for node in half}
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            settings = DirectoryOptions(DOMAIN, first_retry=0.2)
            for node in group:
                node.advertising.update(ONLINE)
            for node in group[:6]:  # three of each half look for others, every two seconds instead of five minutes
                directory = await stack.enter_async_context(
                    open_directory(node.host, settings, registry, lambda: wall.now)
                )
                nursery.start_soon(Announcer(node.advertising, directory, Pace(provide=3600, find=2.0)).run)
            for node in group[1:]:
                await connect(node.host, group[0].host)
            everybody = {node.node for node in group}
            await until(lambda: all(live(node) == everybody for node in group), 100)

            wall.up = True
            for half in halves:
                for node in half:
                    for peer in node.host.peers():
                        if wall.parts(node.host.id, peer.id):
                            node.host.drop(peer.id)
            for half in halves:  # whoever was connected through the other half only
                for node in half[1:]:
                    await connect(node.host, half[0].host)
            wall.now += 1000  # what was said before the parting has expired
            for price, half in enumerate(halves):
                for node in half:
                    node.advertising.update(replace(ONLINE, input_rate=1000 + price))
            for half in halves:
                own = {node.node for node in half}
                await until(lambda own=own, half=half: all(live(node) == own for node in half), 100)

            wall.up = False
            await until(lambda: all(live(node) == everybody for node in group), 100)
            for node in group:
                for advert in node.advertising.table.live(BASE, wall.now):
                    assert advert.value.input_rate in (1000, 1001), "the word of after the parting"
            nursery.cancel_scope.cancel()

    run(test, 330)
