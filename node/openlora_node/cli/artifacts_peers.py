"""Artifacts to and from other nodes without a node running here: a host for the moment, under a key made up for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..protocol.errors import ErrorCode, OpenLoraError
from .output import print_json, print_text

if TYPE_CHECKING:
    from ..artifacts import ArtifactStore
    from ..config.schema import Config
    from ..network.identity import Peer
    from ..network.service import Network
    from ..network.transfer import Sources

ANY_PORT = ("/ip4/0.0.0.0/tcp/0",)
NO_VISITORS = ("/ip4/127.0.0.1/tcp/0",)
LOOK_S = 15.0
"""For peers to come, where none is named."""


async def fetch(
    store: ArtifactStore,
    artifact: bytes,
    config: Config,
    peers: Sequence[str],
    progress: Callable[[int, int], object],
    timeout_s: float,
) -> Path:
    """Fetch from the peers named, else from whoever the bootstrap peers lead to. Raises as `Fetcher.fetch`, NO_NODE."""
    from ..network.transfer import Fetcher
    from ..network.transfer_sources import of_peers
    from ..protocol.messages import ARTIFACT

    named = [_parse(peer) for peer in peers]
    async with _host(config, listen=NO_VISITORS, bootstrap=() if named else config.network.bootstrap) as network:
        try:
            async with asyncio.timeout(timeout_s):
                for peer, address in named:
                    await network.connect(peer, [address])
                sources = of_peers([peer for peer, _ in named]) if named else _whoever_comes(network)
                fetcher = Fetcher(store, lambda peer: network.open(peer, ARTIFACT))
                return await fetcher.fetch(artifact, sources, progress=progress)
        except TimeoutError:
            raise OpenLoraError(
                ErrorCode.NODE_LOST, "the time is over: run it again, it goes on where it is now"
            ) from None


async def seed(store: ArtifactStore, artifact: bytes, config: Config, as_json: bool) -> None:
    """Send one artifact of the store to anyone who asks, until cancelled."""
    from ..network.transfer import Sender, SenderOptions
    from ..protocol.messages import ARTIFACT

    async def may_send(asked: bytes, peer: Peer) -> bool:
        return asked == artifact

    sender = Sender(store, may_send, SenderOptions(upload_rate=config.artifacts.upload_rate))
    async with _host(config, listen=ANY_PORT, bootstrap=config.network.bootstrap, serves=(ARTIFACT,)) as network:
        addresses = await network.addresses()
        if as_json:
            print_json({"seeding": list(addresses)})
        else:
            for address in addresses:
                print_text(f"seeding at {address}")
            print_text("anyone can `openlora artifacts pull` it with --peer; Ctrl-C ends this")
        async with asyncio.TaskGroup() as sessions:
            while True:
                sessions.create_task(sender.serve(await network.accept()), name="artifact session")


@asynccontextmanager
async def _host(
    config: Config, *, listen: tuple[str, ...], bootstrap: tuple[str, ...], serves: tuple[object, ...] = ()
) -> AsyncIterator[Network]:
    from ..network.advertising import AdvertOptions
    from ..network.directory import DirectoryOptions
    from ..network.host import HostOptions
    from ..network.reach_probe import NOWHERE, Nobody
    from ..network.service import Network

    network = Network(
        os.urandom(32),
        HostOptions(listen=listen),
        Nobody(),
        adverts=AdvertOptions(NOWHERE),
        directory=DirectoryOptions(NOWHERE, bootstrap=bootstrap, serve=False),
        serves=serves,  # type: ignore[arg-type]
    )
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


def _whoever_comes(network: Network) -> Sources:
    """Every peer that the network connects to while it looks around."""

    async def sources(artifact: bytes) -> AsyncGenerator[str, None]:
        seen: set[str] = set()
        deadline = asyncio.get_running_loop().time() + LOOK_S
        while asyncio.get_running_loop().time() < deadline:
            for peer in await network.peers():
                if peer.id not in seen:
                    seen.add(peer.id)
                    yield peer.id
            await asyncio.sleep(0.2)
        if not seen:
            raise OpenLoraError(
                ErrorCode.NO_NODE, "no peer answers: name a source with --peer, or set network.bootstrap"
            )

    return sources


def _parse(text: str) -> tuple[str, str]:
    """A peer id and an address. Raises BAD_ID."""
    address, found, peer = text.rpartition("/p2p/")
    if not found or not address or not peer:
        raise OpenLoraError(
            ErrorCode.BAD_ID, "a source is an address with its peer id, such as /ip4/203.0.113.7/tcp/4001/p2p/16Uiu2HA…"
        )
    return peer, address
