"""Networks on 127.0.0.1 that send and fetch artifacts: honest ones, liars, and ones that stop half-way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from openlora_node.artifacts import ArtifactStore, Piece
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.identity import Peer
from openlora_node.network.service import Life, Network
from openlora_node.network.session import Session
from openlora_node.network.transfer import Fetcher, FetchOptions, Sender, SenderOptions
from openlora_node.network.transfer_send import Store
from openlora_node.network.transfer_sources import of_peers
from openlora_node.protocol.manifest import AnyManifest, FileEntry
from openlora_node.protocol.messages import ARTIFACT, ArtifactMessage
from support.network_adverts import DOMAIN
from support.network_peers import QUICK, Registry, fresh_secret

FAST = SenderOptions(upload_rate=1 << 33)
HASTY = FetchOptions(first_wait_s=0.02, answer_s=15.0)
Twist = Callable[[Piece], Piece | None]


@dataclass
class Twisted:
    """A store that sends what `twist` makes of each piece; None: nothing more, ever."""

    store: ArtifactStore
    twist: Twist
    data: bytes | None = None
    """Sent instead of any manifest."""
    gate: asyncio.Event | None = None
    """Chunks wait for it."""
    sent: list[int] = field(default_factory=list)

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """The manifest, or another."""
        manifest = self.store.manifest(artifact)
        if manifest is not None and self.data is not None:
            return _Raw(self.data, manifest)  # type: ignore[return-value]
        return manifest

    async def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
        """Pieces, twisted."""
        if self.gate is not None:
            await self.gate.wait()
        async for piece in self.store.reader(artifact, file, first, count):
            twisted = self.twist(piece)
            if twisted is None:
                await asyncio.Event().wait()
                return
            self.sent.append(piece.index)
            yield twisted


@dataclass
class _Raw:
    data: bytes
    manifest: AnyManifest

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    def encode(self) -> bytes:
        return self.data


@dataclass
class Node:
    """A network with a store behind it."""

    network: Network
    store: ArtifactStore
    sender: Sender
    fetcher: Fetcher
    id: str = ""

    async def meet(self, *others: Node) -> None:
        """Connect to others."""
        for other in others:
            await self.network.connect(other.id, await other.network.addresses())

    async def fetch(
        self,
        artifact: bytes,
        *sources: Node,
        progress: Callable[[int, int], object] | None = None,
        limit: int | None = None,
    ) -> Path:
        """Fetch from these."""
        return await self.fetcher.fetch(artifact, of_peers([s.id for s in sources]), progress=progress, limit=limit)

    async def points(self, other: Node) -> float:
        """What this host holds against another."""

        async def look(life: Life) -> float:
            return life.host.scores.points(other.id, trio.current_time())

        return await self.network._bridge.call(look)


async def allow(artifact: bytes, peer: Peer) -> bool:
    """Everyone may have everything."""
    return True


@asynccontextmanager
async def node(
    store: ArtifactStore,
    *,
    sends: Store | None = None,
    may_send: Callable[[bytes, Peer], Awaitable[bool]] = allow,
    sender: SenderOptions = FAST,
    fetch: FetchOptions = HASTY,
    network: Network | None = None,
) -> AsyncIterator[Node]:
    """A running node that answers artifact sessions."""
    network = network or Network(
        fresh_secret(),
        QUICK,
        Registry(),
        adverts=AdvertOptions(DOMAIN),
        directory=DirectoryOptions(DOMAIN),
        serves=(ARTIFACT,),
    )
    answers = Sender(sends or store, may_send, sender)
    served: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            session: Session[ArtifactMessage] = await network.accept()
            task = asyncio.create_task(answers.serve(session))
            served.add(task)
            task.add_done_callback(served.discard)

    await network.start()
    accepting = asyncio.create_task(accept())
    made = Node(network, store, answers, Fetcher(store, lambda peer: network.open(peer, ARTIFACT), fetch))
    try:
        made.id = await network.peer_id()
        yield made
    finally:
        await made.fetcher.close()
        for task in (accepting, *served):
            task.cancel()
        await asyncio.gather(accepting, *served, return_exceptions=True)
        await network.stop()


@asynccontextmanager
async def nodes(root: Path, count: int, cache_size: int = 1 << 30) -> AsyncIterator[list[Node]]:
    """That many honest nodes; the first is connected to all others."""
    async with AsyncExitStack() as stack:
        made = []
        for number in range(count):
            store = stack.enter_context(open_store(root / f"node{number}", cache_size))
            made.append(await stack.enter_async_context(node(store)))
        await made[0].meet(*made[1:])
        yield made


def open_store(root: Path, cache_size: int = 1 << 30) -> ArtifactStore:
    """A store that leaves no space free."""
    return ArtifactStore.open(root, cache_size, keep_free=0)
