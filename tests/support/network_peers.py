"""Hosts on 127.0.0.1 for tests of the network, a registry that a test fills, and peers that misbehave."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from openlora_node.network.host import Host, HostOptions
from openlora_node.network.opening import open_host
from openlora_node.protocol.crypto import LocalSigner

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
QUICK = HostOptions(listen=LOOPBACK, ping_interval=0.2, handshake_timeout=20.0, dial_timeout=20.0)
"""Patient enough for a busy machine."""
CALM = replace(QUICK, ping_interval=5.0, frozen_after=60.0, stream_timeout=60.0)
"""For many processes at once: few pings, and no peer is given up because the machine is busy."""
IMPATIENT = replace(QUICK, frozen_after=0.6, stream_timeout=2.0)
"""For tests of what is given up."""


@dataclass
class Registry:
    """A registry view with the nodes that a test puts in."""

    nodes: dict[bytes, bytes] = field(default_factory=dict)
    published: tuple[str, ...] = ()

    def node_of(self, address: bytes) -> bytes | None:
        """The node id registered for an address."""
        return self.nodes.get(address)

    def key_of(self, node: bytes) -> bytes | None:
        """The address registered for a node id."""
        return next((address for address, known in self.nodes.items() if known == node), None)

    def endpoints(self) -> tuple[str, ...]:
        """What is published on chain."""
        return self.published

    def register(self, secret: bytes) -> bytes:
        """A node id for this key."""
        address = LocalSigner(secret).address
        self.nodes[address] = address.rjust(32, b"\x01")
        return self.nodes[address]


def secret(index: int) -> bytes:
    """Key number `index`."""
    return (index + 1).to_bytes(32, "big")


def fresh_secret() -> bytes:
    """A key that no other test uses."""
    return os.urandom(31).rjust(32, b"\x01")


@asynccontextmanager
async def hosts(
    count: int, options: HostOptions = QUICK, registry: Registry | None = None
) -> AsyncIterator[list[Host]]:
    """That many hosts, not connected."""
    async with AsyncExitStack() as stack:
        registry = registry or Registry()
        yield [await stack.enter_async_context(open_host(fresh_secret(), options, registry)) for _ in range(count)]


async def connect(a: Host, b: Host) -> None:
    """Connect two hosts."""
    await a.connect(b.id, b.addresses())


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a state that has no event of its own."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]], seconds: float = 90.0) -> None:
    """Run a trio test, bounded in time. Errors come out of their groups."""

    async def bounded() -> None:
        with trio.fail_after(seconds):
            await test()

    try:
        trio.run(bounded)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from group
