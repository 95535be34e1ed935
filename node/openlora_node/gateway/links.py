"""Network and chain as the gateway's rooms want them: thin fits over `Network`, `Candidates` and `ChainView`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from openlora_chain.errors import ChainError
from openlora_chain.outbox import Outbox
from openlora_chain.store import NewIntent

from ..artifacts.layout import MANIFEST, Layout
from ..chainview import ChainParts, EscrowState, Scope, Terms
from ..network.candidates import Candidates
from ..network.routing import Ask
from ..network.service import Network
from ..network.session import Session
from ..network.standing import Outcome, outcome_of
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import ArtifactId, format_artifact_id
from ..protocol.manifest import BaseManifest, decode_manifest
from ..protocol.messages import ARTIFACT, VOUCHER, StreamProtocol
from .ports import Conversation, Offered
from .tokenizer_fetch import Library
from .tokenizers import BaseFolder

FIND_TIMEOUT_S = 10.0
FIND_PAUSE_S = 0.3
MAX_FOLLOWED = 64
"""Bases heard of: clients may name any id, and each is a topic of its own."""


class ChainLink:
    """The chain's view and contracts as `ports.Chain`."""

    def __init__(self, parts: ChainParts) -> None:
        self._parts = parts
        self._view = parts.view

    def key_of(self, node: bytes) -> bytes | None:
        """As ports.Chain says."""
        return self._view.key_of(node)

    async def terms(self, artifact: bytes) -> Terms:
        """As ports.Chain says."""
        return await self._view.terms(artifact)

    async def terms_at(self, artifact: bytes, version: int) -> Terms | None:
        """As ports.Chain says."""
        return await self._view.terms_at(artifact, version)

    async def has_access(self, artifact: bytes, subject: bytes) -> bool:
        """As ports.Chain says."""
        return await self._view.has_access(artifact, Scope.USE, subject)

    async def escrow(self, payer: bytes, node: bytes) -> EscrowState:
        """As ports.Chain says."""
        return await self._view.escrow(payer, node)

    async def redeemed(self, payer: bytes, signer: bytes, node: bytes, pipeline: bytes) -> tuple[int, int, int]:
        """As ports.Chain says."""
        try:
            channel = await self._parts.settlement.channel_of(payer, signer, node, pipeline)
        except ChainError as error:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, error.message) from None
        self._view.forget_escrow(payer, node)
        return channel.tokens, channel.compute, channel.compute_debt + channel.royalty_debt

    async def anchored(self, node: bytes, epoch: int) -> bytes:
        """As proofs.AnchoredRoot says."""
        try:
            return await self._parts.anchor.root_of(node, epoch)
        except ChainError as error:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, error.message) from None

    def health(self) -> ServiceHealth:
        """As ports.Chain says."""
        return self._view.health()


class NodesLink:
    """Network and candidates as `ports.Nodes`."""

    def __init__(self, network: Network, candidates: Candidates) -> None:
        self._network = network
        self._candidates = candidates
        self._followed: set[bytes] = set()

    async def follow(self, base: bytes) -> None:
        """Hear of a base's nodes. While nobody serves it the directory is asked, and the caller waits a while."""
        if base not in self._followed:
            if len(self._followed) >= MAX_FOLLOWED:
                return
            await self._network.follow(base)
            self._followed.add(base)
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                while not await self._candidates.live(base):
                    await self._network.find(base)
                    await asyncio.sleep(FIND_PAUSE_S)
        except (OpenLoraError, TimeoutError):
            pass

    async def offers(self, base: bytes) -> Sequence[Offered]:
        """As ports.Nodes says."""
        await self.follow(base)
        live = [advert.value for advert in await self._candidates.live(base)]
        return [Offered(each.node, each.input_rate, each.output_rate, each.max_context) for each in live]

    async def pick(self, base: bytes, ask: Ask, tried: Collection[bytes]) -> bytes | None:
        """As ports.Nodes says."""
        return await self._candidates.pick(base, ask, tried)

    def report(self, node: bytes, error: OpenLoraError | None, base: bytes, ask: Ask) -> None:
        """As ports.Nodes says."""
        if error is None:
            self._candidates.report(node, Outcome.COMPLETED, base=base, ask=ask)
            return
        wait = 1.0 if error.retry_after_ms is None else error.retry_after_ms / 1000
        self._candidates.report(
            node, outcome_of(error), base=base, ask=ask, retry_after_s=wait, others=error.alternatives
        )

    async def health(self) -> ServiceHealth:
        """As ports.Nodes says."""
        try:
            async with asyncio.timeout(1):
                lonely = await self._network.is_degraded()
                unserved = [base for base in tuple(self._followed) if not await self._candidates.live(base)]
        except (OpenLoraError, TimeoutError):
            return ServiceHealth("network", Level.DOWN, "the host is starting again")
        if lonely:
            return ServiceHealth("network", Level.DEGRADED, "no peer is connected: check network.bootstrap")
        if unserved:
            return ServiceHealth(
                "network", Level.DEGRADED, f"no node serves {format_artifact_id(unserved[0])} as far as is known yet"
            )
        return ServiceHealth("network", Level.UP)


class SessionsLink:
    """Sessions with nodes, connected to when needed."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def talk(self, node: bytes) -> Conversation:
        """As ports.Accounts says."""
        return await self._open(node, VOUCHER)

    async def visit(self, node: bytes) -> Library:
        """As tokenizer_fetch.Visit says."""
        return await self._open(node, ARTIFACT)

    async def _open(self, node: bytes, protocol: StreamProtocol[Any]) -> Session[Any]:
        peer = await self._network.connect_node(node)
        return await self._network.open(peer.id, protocol, node=node)


class StoredTokenizers:
    """Tokenizers of bases that lie in the artifact store of this machine."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)

    async def find(self, base: bytes) -> BaseFolder | None:
        """As tokenizers.Source says."""
        return await asyncio.to_thread(self._find, base)

    def _find(self, base: bytes) -> BaseFolder | None:
        folder = self._layout.artifact(base)
        try:
            manifest = decode_manifest((folder / MANIFEST).read_bytes(), ArtifactId(base))
        except (OSError, ProtocolError):
            return None
        return BaseFolder(folder, manifest) if isinstance(manifest, BaseManifest) else None


class OutboxLink:
    """The outbox as the escrows' sender."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def wake(self) -> None:
        """Look at the store now."""
        self._outbox.wake()

    @property
    def blocked(self) -> str | None:
        """What holds the transactions up."""
        return self._outbox.status.blocked


def deposit_by(parts: ChainParts, payer: bytes, sender: bytes) -> Any:
    """(node, wei) → the deposit's transaction, sent by the key that is here."""

    def deposit(node: bytes, wei: int) -> NewIntent:
        contract = parts.settlement
        call = contract.deposit(node, wei) if sender == payer else contract.deposit_for(payer, node, wei)
        return NewIntent("deposit", node, parts.deployment.chain_id, sender, call.to, call.data, call.value)

    return deposit
