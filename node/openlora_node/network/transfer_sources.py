"""Who may have an artifact, the likeliest first.

Adverts carry a filter of a node's adapters: what it says no to is not asked for. Bases and datasets stand in no filter,
so connected peers are asked as well; the fetch itself finds out who really has what.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Protocol

from ..protocol.errors import OpenLoraError
from .adverts import Advert
from .filters import AdapterFilter
from .identity import Peer
from .transfer import Sources

ASKED_AT_ONCE = 8
NODE_S = 5.0
MAX_NODES = 256
"""Nodes whose filters are looked at for one artifact."""
MAX_STRANGERS = 16
"""Connected peers that are asked without a word of theirs that they have it."""


class NetworkView(Protocol):
    """What finding sources needs of the network."""

    async def nodes(self, base: bytes) -> tuple[Advert, ...]:
        """The newest adverts of nodes that serve a base."""
        ...

    async def filter_of(self, node: bytes) -> AdapterFilter | None:
        """The adapters of a connected node."""
        ...

    async def connect_node(self, node: bytes) -> Peer:
        """A connection to a node."""
        ...

    async def peers(self) -> tuple[Peer, ...]:
        """Connected peers."""
        ...

    async def peer_id(self) -> str:
        """This host's own."""
        ...


class Finder:
    """Finds sources through adverts and connections. `bases`: the base models whose nodes are worth asking."""

    def __init__(
        self, network: NetworkView, bases: Callable[[], Iterable[bytes]], dice: random.Random | None = None
    ) -> None:
        self._network = network
        self._bases = bases
        self._dice = dice or random.Random()  # noqa: S311 - spreads load, decides nothing secret

    async def sources(self, artifact: bytes) -> AsyncGenerator[str, None]:
        """Peer ids, connected: those whose filter has it, then other connected peers."""
        seen = {await self._network.peer_id()}
        nodes: dict[bytes, Advert] = {}
        for base in self._bases():
            nodes |= {advert.node: advert for advert in await self._network.nodes(base)}
        likely = [node for node, advert in nodes.items() if advert.value.adapter_count]
        self._dice.shuffle(likely)  # or everyone would fetch from the same few
        del likely[MAX_NODES:]
        for start in range(0, len(likely), ASKED_AT_ONCE):
            group = likely[start : start + ASKED_AT_ONCE]
            for peer in await asyncio.gather(*(self._holder(node, artifact) for node in group)):
                if peer is not None and peer not in seen:
                    seen.add(peer)
                    yield peer
        strangers = [peer.id for peer in await self._network.peers() if peer.id not in seen]
        self._dice.shuffle(strangers)
        for stranger in strangers[:MAX_STRANGERS]:
            yield stranger

    async def _holder(self, node: bytes, artifact: bytes) -> str | None:
        try:
            async with asyncio.timeout(NODE_S):
                peer = await self._network.connect_node(node)
                holds = await self._network.filter_of(node)
        except (OpenLoraError, TimeoutError):
            return None
        return peer.id if holds is not None and artifact in holds else None


def of_peers(peers: Sequence[str], then: Sources | None = None) -> Sources:
    """Sources that somebody named, then those of `then`."""

    async def sources(artifact: bytes) -> AsyncGenerator[str, None]:
        for peer in peers:
            yield peer
        if then is not None:
            async with aclosing(then(artifact)) as more:
                async for peer in more:
                    yield peer

    return sources
