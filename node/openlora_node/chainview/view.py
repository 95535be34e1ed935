"""What the doors need to know of the chain, cached and kept up to date by its events.

Look-ups of nodes are plain dict look-ups, from any thread. Everything else is awaited in the loop that made the view:
an answer that no event has touched is given from memory, another is read from the contracts, so that no decision hangs
on an event that a node left out. Without the chain the view starts all the same, says so, and recovers by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from openlora_chain import events
from openlora_chain.bindings import ArtifactRegistry, NodeRegistry, Settlement
from openlora_chain.deployment import Deployment, check_deployment
from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.events import Event, EventTable
from openlora_chain.follower import LogBatch, LogFollower
from openlora_chain.rpc import Head, Rpc
from openlora_chain.store import BlockRef, LogRecord, LogStore

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain
from ..protocol.health import Level, ServiceHealth
from .keeper import Keeper
from .reads import Reads
from .values import (
    AccessChanged,
    ChainEvent,
    EscrowState,
    NodeEntry,
    NodeKeyChanged,
    Scope,
    Terms,
    TermsChanged,
    ThawStarted,
)

_log = logging.getLogger(__name__)

FOLLOWER = "chainview"
FOLLOWED: tuple[type[Event], ...] = (
    events.NodeRegistered,
    events.KeyRotated,
    events.RecipientChanged,
    events.EndpointChanged,
    events.StakeAdded,
    events.NodeDeregistered,
    events.NodeSlashed,
    events.ArtifactRegistered,
    events.TermsChanged,
    events.OwnerChanged,
    events.PolicyChanged,
    events.ListingChanged,
    events.LicenceBought,
    events.ThawStarted,
    events.SignerAuthorized,
    events.SignerThawing,
)
MAX_PAUSE_S = 10.0
RECONCILE_S = 60.0
REFUSALS = frozenset({ChainErrorCode.WRONG_CHAIN, ChainErrorCode.CONTRACT_MISMATCH})

Listener = Callable[[ChainEvent], None]


class _OurLogs:
    """The chain as the follower sees it: of our contracts' logs only those that the view acts on."""

    def __init__(self, rpc: Rpc, topics: tuple[bytes, ...]) -> None:
        self._rpc = rpc
        self._topics = topics

    async def head(self) -> Head:
        return await self._rpc.head()

    async def block(self, number: int) -> Head | None:
        return await self._rpc.block(number)

    async def logs(self, first: int, last: int, addresses: Sequence[bytes]) -> list[LogRecord]:
        return await self._rpc.logs(first, last, addresses, self._topics)


class ChainView:
    """Caches over one deployment. `run` keeps them up to date; `step` is one look, for tests and short programs."""

    def __init__(
        self,
        rpc: Rpc,
        deployment: Deployment,
        store: LogStore,
        *,
        snapshot: Path | None = None,
        poll_s: float = 2.0,
        max_range: int = 500,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self.domain = Domain(chain_id=deployment.chain_id, verifying_contract=Address(deployment.settlement))
        self._rpc = rpc
        self._deployment = deployment
        self._store = store
        self._poll_s = poll_s
        self._clock = clock
        self._now = now
        self._reads = Reads(
            rpc, ArtifactRegistry(rpc, deployment), Settlement(rpc, deployment), clock, escrow_fresh_s=max(poll_s, 1.0)
        )
        self._table = EventTable(deployment, FOLLOWED)
        self._follower = LogFollower(
            FOLLOWER,
            _OurLogs(rpc, self._table.topics),
            store,
            self._table.addresses,
            self._deliver,
            start=deployment.block,
            max_range=max_range,
        )
        self._keeper = Keeper(NodeRegistry(rpc, deployment), deployment, snapshot, clock, self._tell_key)
        self._listeners: list[Listener] = []
        self._synced = asyncio.Event()
        self._loaded = False
        self._head: BlockRef | None = None
        self._reached: BlockRef | None = None
        self._failing = False
        self._reconciled_at = float("-inf")
        self._health = ServiceHealth("chain", Level.INITIALIZING, "reading the chain", now())

    def __repr__(self) -> str:
        return (
            f"ChainView(chain {self.domain.chain_id}, {len(self._keeper.registry)} nodes, {self._health.level.value})"
        )

    # Look-ups: any thread, never block.

    def node_of(self, address: bytes) -> bytes | None:
        """The id of the registered node whose current key has this address."""
        return self._keeper.registry.node_of(address)

    def key_of(self, node: bytes) -> bytes | None:
        """The address of a registered node's current key."""
        return self._keeper.registry.key_of(node)

    def endpoints(self) -> tuple[str, ...]:
        """Multiaddrs with peer ids that active nodes published on chain."""
        return self._keeper.registry.endpoints()

    def node(self, node: bytes) -> NodeEntry | None:
        """What the registry says of a node, deregistered ones included; None for an unknown id."""
        return self._keeper.registry.node(node)

    def nodes(self) -> list[NodeEntry]:
        """All nodes known, deregistered ones included."""
        return self._keeper.registry.entries()

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""
        return self._head

    # Reads: in the view's loop. Each raises OpenLoraError CHAIN_FAILED where nothing fresh enough is known.

    async def terms(self, artifact: bytes) -> Terms:
        """The current terms of an artifact; version 0 while it is unregistered."""
        return await self._reads.terms.get(artifact, offline=self._failing)

    async def terms_at(self, artifact: bytes, version: int) -> Terms | None:
        """One version of an artifact's terms, None if there is none. Version 0 exists for every artifact."""
        return await self._reads.terms_at.get((artifact, version), offline=self._failing)

    async def accepted_until(self, artifact: bytes, version: int) -> int:
        """Last unix second at which these terms redeem: FOREVER while they are current, 0 if they do not exist."""
        return await self._reads.until.get((artifact, version), offline=self._failing)

    async def has_access(self, artifact: bytes, scope: Scope | int, subject: bytes) -> bool:
        """Whether a payer (20 bytes, scope USE) or a node (32 bytes, scope HOST) passes an artifact's door now."""
        return await self._reads.access.get((artifact, Scope(scope), subject.rjust(32, b"\0")), offline=self._failing)

    async def may_sign(self, payer: bytes, signer: bytes) -> bool:
        """Whether the signer's vouchers bind the payer now."""
        return signer == payer or await self._reads.signers.get((payer, signer), offline=self._failing)

    async def escrow(self, payer: bytes, node: bytes, *, fresh: bool = False) -> EscrowState:
        """A payer's escrow with a node as of the newest block seen; `fresh` reads it now, as after a deposit.

        While the chain does not answer: an answer of at most 2 minutes, and at most half the thaw, before.
        """
        key = (payer, node)
        mark = object() if fresh else self._head
        return await self._reads.escrow.get(key, mark, offline=self._failing and not fresh)

    def forget_escrow(self, payer: bytes, node: bytes) -> None:
        """Read this escrow anew next time: what was redeemed of it has just been recorded."""
        self._reads.escrow.drop((payer, node))

    # Events and health.

    def on_event(self, callback: Listener) -> None:
        """Have `callback` called in the loop at every ChainEvent. It must not block, and may hear twice."""
        self._listeners.append(callback)

    def health(self) -> ServiceHealth:
        """Up once the newest block is reached; degraded, with the reason, while the chain does not answer."""
        return self._health

    async def wait_synced(self) -> None:
        """Wait until the view has reached the newest block once. Somebody must be running `run`."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep up with the chain until cancelled. The chain's errors are waited out, the store's are raised."""
        pause = self._poll_s
        while True:
            try:
                behind = await self.step()
                pause = self._poll_s
            except ChainError:
                behind, pause = False, min(max(pause * 2, 0.1), MAX_PAUSE_S)
            if not behind:
                await asyncio.sleep(pause)

    async def step(self) -> bool:
        """One look at the chain; True when more is waiting. Raises ChainError, after which `health` says why."""
        try:
            if not self._loaded:
                await self._keeper.load(self._store, FOLLOWER, self._table)
                self._loaded = True
            await self.check()
            behind = await self._follower.step()
            await self._keeper.settle_doubts(self._head)
            if not behind and self._clock() - self._reconciled_at >= RECONCILE_S:
                await self._keeper.check_some(self._head)
                self._reconciled_at = self._clock()
        except ChainError as error:
            self._fail(error)
            raise
        await self._keeper.save(self._reached)
        self._failing = False
        behind = behind or bool(self._keeper.registry.doubtful)
        if not behind:
            self._synced.set()
        if self._synced.is_set():
            self._set_health(Level.UP, "")
        else:
            self._set_health(Level.INITIALIZING, self._progress())
        return behind

    async def check(self) -> None:
        """That the endpoint in use serves the right chain and contracts; again whenever the endpoint changed.

        Raises ChainError; WRONG_CHAIN and CONTRACT_MISMATCH where it does not.
        """
        endpoint = self._rpc.endpoint
        if endpoint in self._reads.trusted:
            return
        await check_deployment(self._rpc, self._deployment)
        await self._reads.learn_thaw()
        if endpoint == self._rpc.endpoint:
            self._reads.trusted.add(endpoint)

    async def close(self) -> None:
        """Write the snapshot. Call it when `run` has ended."""
        if self._loaded:
            await self._keeper.save(self._reached, at_once=True)

    # Following.

    async def _deliver(self, batch: LogBatch) -> None:
        """Take in a step along the chain, or back."""
        rolled_back = batch.upto is None or (self._reached is not None and batch.upto.number < self._reached.number)
        if rolled_back or batch.removed:
            self._reads.forget_all()
            if batch.upto is None:
                self._keeper.registry.doubt_all()
        for log in batch.removed:
            if (event := self._table.decode(log)) is not None:
                self._keeper.registry.undo(event)
        for log in batch.added:
            if (event := self._table.decode(log)) is not None:
                self._take(event, (log.block.number, log.index))
        self._reached, self._head = batch.upto, batch.head

    def _take(self, event: Event, at: tuple[int, int]) -> None:
        self._reads.forget(event)
        if (node := self._keeper.registry.apply(event, at)) is not None:
            self._tell_key(node)
        if (told := _to_tell(event)) is not None:
            self._tell(told)

    def _tell_key(self, node: bytes) -> None:
        key = self._keeper.registry.key_of(node)
        self._tell(NodeKeyChanged(node, None if key is None else Address(key)))

    def _tell(self, event: ChainEvent) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener's fault stays the listener's
                _log.exception("chain view: a listener failed at %s", type(event).__name__)

    # Health.

    def _fail(self, error: ChainError) -> None:
        self._failing = True
        refused = error.code in REFUSALS
        if refused:
            self._reads.trusted.discard(self._rpc.endpoint)
            self._rpc.skip()
        if self._health.level not in (Level.DEGRADED, Level.DOWN):
            _log.warning("chain view: %s", error)
        self._set_health(Level.DOWN if refused else Level.DEGRADED, error.message)

    def _set_health(self, level: Level, reason: str) -> None:
        since = self._health.since if level is self._health.level else self._now()
        if level is Level.UP and self._health.level is not Level.UP:
            _log.info("chain view: up to date, %d nodes registered", len(self._keeper.registry))
        self._health = ServiceHealth("chain", level, reason, since)

    def _progress(self) -> str:
        if self._head is None or self._reached is None:
            return "reading the chain"
        return f"reading the chain: block {self._reached.number} of {self._head.number}"


def _to_tell(event: Event) -> ChainEvent | None:
    match event:
        case events.ThawStarted():
            return ThawStarted(Address(event.payer), event.node, event.thawing, event.thaw_end)
        case events.TermsChanged():
            return TermsChanged(event.artifact, event.version)
        case events.PolicyChanged():
            return AccessChanged(event.artifact, Scope(event.scope))
        case events.ListingChanged() | events.LicenceBought():
            return AccessChanged(event.artifact, Scope(event.scope), event.subject)
        case events.OwnerChanged():
            return AccessChanged(event.artifact, Scope.USE)
    return None
