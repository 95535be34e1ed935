"""Artifacts as the node uses them: here already, or fetched from peers that have them, if its access policy allows."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..artifacts import ArtifactStore, Kind
from ..chainview import Scope
from ..network.identity import Peer
from ..network.session import Session
from ..network.transfer import Fetcher
from ..network.transfer_sources import Finder, NetworkView
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import ZERO32, format_artifact_id
from ..protocol.manifest import AnyManifest
from ..protocol.messages import ARTIFACT, ArtifactMessage, StreamProtocol


class AccessView(Protocol):
    """The chain view, as far as artifacts need it."""

    async def has_access(self, artifact: bytes, scope: Scope | int, subject: bytes) -> bool:
        """Whether a node may hold an artifact. Raises CHAIN_FAILED."""
        ...


class OpensSessions(NetworkView, Protocol):
    """The network, as far as finding and opening sources needs it."""

    async def open(
        self, peer: str, protocol: StreamProtocol[ArtifactMessage], *, node: bytes | None = None
    ) -> Session[ArtifactMessage]:
        """A session with a connected peer."""
        ...


class Shelf:
    """The store with the network behind it."""

    def __init__(
        self,
        store: ArtifactStore,
        chain: AccessView,
        network: OpensSessions,
        node: bytes,
        bases: tuple[bytes, ...],
        limit: int,
    ) -> None:
        """`bases`: whose nodes are asked for what is missing.

        `limit`: most bytes of an adapter that a request makes this node fetch.
        """
        self.store = store
        self.fetcher = Fetcher(store, lambda peer: network.open(peer, ARTIFACT))
        self._chain = chain
        self._finder = Finder(network, lambda: bases)
        self._node = node
        self._limit = limit

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """Its manifest, if the artifact is here."""
        return self.store.manifest(artifact)

    async def ensure(self, artifact: bytes) -> Path:
        """An adapter's folder, fetched if this node may hold it.

        Raises ADAPTER_NOT_FOUND, ACCESS_DENIED, NODE_LOST, STORAGE_*, and CHAIN_FAILED where the policy is unknown.
        """
        folder = self.store.folder(artifact)
        if folder is not None:
            return folder
        if not await self._chain.has_access(artifact, Scope.HOST, self._node):
            raise OpenLoraError(
                ErrorCode.ACCESS_DENIED, f"this node may not hold {format_artifact_id(artifact)}: ask another"
            )
        try:
            return await self.fetch(artifact, self._limit)
        except OpenLoraError as error:
            if error.code is ErrorCode.NOT_FOUND:
                raise OpenLoraError(ErrorCode.ADAPTER_NOT_FOUND) from None
            raise

    async def fetch(self, artifact: bytes, limit: int | None = None) -> Path:
        """The same for any artifact, whatever its policy says. Raises NOT_FOUND."""
        return await self.fetcher.fetch(artifact, self._finder.sources, limit=limit)

    async def may_send(self, artifact: bytes, peer: Peer) -> bool:
        """Whether a peer may hold an artifact; a stranger may hold what everybody may.

        A credits table is everybody's: whoever registered its id as private could else void the credits.
        """
        entry = self.store.entry(artifact)
        if entry is not None and entry.kind is Kind.CREDITS:
            return True
        return await self._chain.has_access(artifact, Scope.HOST, peer.node or ZERO32)
