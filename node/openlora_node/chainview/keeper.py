"""Keeps the registry true: snapshot at start and end, doubtful nodes read again, some checked at intervals.

The registry itself is folded from events; this file reads contracts and the disk for what events alone do not tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from openlora_chain.bindings import NodeRegistry
from openlora_chain.deployment import Deployment
from openlora_chain.events import EventTable
from openlora_chain.follower import KEEP_BLOCKS
from openlora_chain.store import BlockRef, LogStore

from ..protocol.crypto import Address
from .registry import Registry
from .snapshot import load_snapshot, save_snapshot
from .values import NodeEntry

DOUBTS_A_STEP = 64
CHECKS = 32
SAVE_S = 30.0
SAVE_BLOCKS = 256
"""The store keeps checkpoints of some more blocks than this; a snapshot of a block that it forgot is read all over."""
END_OF_BLOCK = 1 << 31


class Keeper:
    """One registry of one deployment. `on_key` hears of nodes whose key changed by a read."""

    def __init__(
        self,
        nodes: NodeRegistry,
        deployment: Deployment,
        snapshot: Path | None,
        clock: Callable[[], float],
        on_key: Callable[[bytes], None],
    ) -> None:
        self.registry = Registry()
        self._nodes = nodes
        self._deployment = deployment
        self._file = snapshot
        self._clock = clock
        self._on_key = on_key
        self._cursor = 0
        self._saved_changes = 0
        self._saved_block = 0
        self._saved_at = float("-inf")

    async def load(self, store: LogStore, follower: str, table: EventTable) -> None:
        """Take up the snapshot and the logs after it that the store still has; else begin anew."""
        snapshot = None
        if self._file is not None:
            snapshot = await asyncio.to_thread(load_snapshot, self._file, self._deployment)
        checkpoints = list(await store.checkpoints(follower))
        if snapshot is None or not checkpoints:
            # Without the nodes, progress made before is worth nothing.
            await store.roll_back(follower, -1)
            return
        self.registry = Registry(snapshot.entries, (snapshot.block.number, END_OF_BLOCK))
        if snapshot.block not in checkpoints:
            self.registry.doubt_all()
        if checkpoints[0].number - snapshot.block.number > KEEP_BLOCKS:
            await store.roll_back(follower, snapshot.block.number)
        for log in reversed(await store.above(follower, snapshot.block.number)):
            if (event := table.decode(log)) is not None:
                self.registry.apply(event, (log.block.number, log.index))

    async def settle_doubts(self, head: BlockRef | None) -> None:
        """Read nodes of which events alone do not tell how they stand, a bounded number. Raises ChainError."""
        for node in list(self.registry.doubtful)[:DOUBTS_A_STEP]:
            await self._read(node, head)

    async def check_some(self, head: BlockRef | None) -> None:
        """Read some nodes though nothing happened to them: an event may have been left out. Raises ChainError."""
        entries = self.registry.entries()
        for number in range(min(CHECKS, len(entries))):
            await self._read(entries[(self._cursor + number) % len(entries)].node, head)
        self._cursor += CHECKS

    async def save(self, reached: BlockRef | None, *, at_once: bool = False) -> None:
        """Write the snapshot when it is due: nodes changed, or the store would soon forget its block."""
        if self._file is None or reached is None or self.registry.doubtful:
            return
        changed = self.registry.changes != self._saved_changes
        old = reached.number - self._saved_block >= SAVE_BLOCKS
        if not (changed or old) or (not at_once and self._clock() - self._saved_at < SAVE_S):
            return
        self._saved_changes, self._saved_block, self._saved_at = self.registry.changes, reached.number, self._clock()
        await asyncio.to_thread(save_snapshot, self._file, self._deployment, reached, self.registry.entries())

    async def _read(self, node: bytes, head: BlockRef | None) -> None:
        found = await self._nodes.find_node(node)
        entry = None
        if found is not None:
            entry = NodeEntry(
                node=node,
                owner=Address(found.owner),
                key=Address(found.key),
                recipient=Address(found.recipient),
                endpoint=await self._nodes.endpoint_of(node),
                active=await self._nodes.is_active(node),
                registered=not found.deregistered,
                peer_id=await self._nodes.peer_id_of(found.key),
            )
        if self.registry.put(node, entry, (head.number if head else 0, END_OF_BLOCK)) is not None:
            self._on_key(node)
