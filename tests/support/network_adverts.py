"""Adverts, registered nodes and hosts that advertise, for tests of the network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from openlora_node.network.advertising import Advertising, AdvertOptions, open_advertising
from openlora_node.network.adverts import OwnState, make_advert
from openlora_node.network.hardware import Hardware
from openlora_node.network.host import Host, HostOptions
from openlora_node.network.opening import open_host
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.structs import NodeAdvert, NodeState, Reach
from support.network_peers import QUICK, Registry, fresh_secret

DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x5e" * 20)
BASE = hashlib.sha256(b"a base model").digest()
NOW = 1_750_000_000
ONLINE = OwnState(
    state=NodeState.ONLINE,
    reach=Reach.DIRECT,
    base_models=(BASE,),
    input_rate=2 * 10**17,
    output_rate=6 * 10**17,
    tokens_per_second=400,
    max_context=8192,
    hardware=Hardware("NVIDIA L4", 23_034, 20_000),
    dtype="bfloat16",
    version="0.1.0",
    addresses=("/ip4/203.0.113.7/tcp/4001",),
)


def adapter(index: int) -> bytes:
    """Artifact id number `index`."""
    return hashlib.sha256(index.to_bytes(8, "big")).digest()


def signed(
    secret: bytes, node: bytes, *, seq: int = 1, now: int = NOW, lifetime: int = 180, **changes: object
) -> Signed[NodeAdvert]:
    """A node's advert."""
    state = replace(ONLINE, **changes)  # type: ignore[arg-type]
    return make_advert(
        node, state, ZERO32, seq=seq, now=now, lifetime_s=lifetime, domain=DOMAIN, key=LocalSigner(secret)
    )


@dataclass
class Node:
    """A host that advertises."""

    host: Host
    advertising: Advertising
    node: bytes
    secret: bytes


@asynccontextmanager
async def nodes(
    count: int,
    registry: Registry,
    options: HostOptions = QUICK,
    clock: Callable[[], float] | None = None,
    **advert: float,
) -> AsyncIterator[list[Node]]:
    """That many registered nodes, not connected, with nothing to say yet."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            secret = fresh_secret()
            node = registry.register(secret)
            host = await stack.enter_async_context(open_host(secret, options, registry))
            settings = AdvertOptions(DOMAIN, node=node, key=LocalSigner(secret), **advert)
            arguments = (host, settings, registry) if clock is None else (host, settings, registry, clock)
            advertising = await stack.enter_async_context(open_advertising(*arguments))
            made.append(Node(host, advertising, node, secret))
        yield made
