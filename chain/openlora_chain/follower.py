"""Follows the event logs of some contracts: bounded ranges, restart where it stopped, roll back on a reorg.

It delivers at least once: the receiver acts, then the progress is stored, so a crash between repeats a batch. Events
are hints: caches are built from them, but money never hangs on one, as a node may leave logs out. Hence every pass
reads the newest blocks again (`overlap`), and `reconcile` is called at intervals: the receiver reads contract state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .access import LogAccess
from .errors import ChainError, ChainErrorCode, RpcError
from .store import BlockRef, LogRecord, LogStore

_log = logging.getLogger(__name__)

DEFAULT_RANGE = 500
MAX_PAUSE_S = 60.0
KEEP_BLOCKS = 4_096
"""How far back a reorg can be undone log by log; a deeper one starts over."""


@dataclass(frozen=True, slots=True)
class LogBatch:
    """A step along the chain. First undo `removed` (newest first), then apply `added` (in chain order).

    `added` may name blocks at or below earlier batches: a node had left those logs out. `upto` is the block reached,
    `head` the newest one: depth is `head.number - block.number + 1`.
    """

    removed: Sequence[LogRecord]
    added: Sequence[LogRecord]
    upto: BlockRef | None
    head: BlockRef


Deliver = Callable[[LogBatch], Awaitable[None]]
Reconcile = Callable[[BlockRef], Awaitable[None]]


class LogFollower:
    """One reader under one name. `step` reads one range; `run` keeps up with the head until it is cancelled."""

    def __init__(
        self,
        name: str,
        chain: LogAccess,
        store: LogStore,
        addresses: Sequence[bytes],
        deliver: Deliver,
        *,
        start: int,
        max_range: int = DEFAULT_RANGE,
        overlap: int = 12,
        poll_s: float = 2.0,
        reconcile: Reconcile | None = None,
        reconcile_every_s: float = 60.0,
    ) -> None:
        if not addresses or max_range < 1 or not 0 <= overlap <= KEEP_BLOCKS or start < 0:
            raise ValueError("a follower needs addresses, a range of at least 1 and a start block")
        self.name = name
        self._chain = chain
        self._store = store
        self._addresses = tuple(addresses)
        self._deliver = deliver
        self._start = start
        self._max_range = max_range
        self._range = max_range
        self._overlap = overlap
        self._poll_s = poll_s
        self._reconcile = reconcile
        self._reconcile_every_s = reconcile_every_s

    def __repr__(self) -> str:
        return f"LogFollower({self.name!r}, range={self._range})"

    async def run(self) -> None:
        """Keep up with the head; errors of the node are waited out, those of receiver and store are raised."""
        loop = asyncio.get_running_loop()
        pause, reconciled_at, failing = self._poll_s, float("-inf"), False
        while True:
            try:
                behind = await self.step()
                if self._reconcile and loop.time() - reconciled_at >= self._reconcile_every_s:
                    await self._reconcile((await self._chain.head()).ref)
                    reconciled_at = loop.time()
                pause, failing = self._poll_s, False
            except ChainError as error:
                if not failing:
                    _log.warning("follower %s: %s", self.name, error)
                behind, pause, failing = False, min(pause * 2, MAX_PAUSE_S), True
            if not behind:
                await asyncio.sleep(pause)

    async def step(self) -> bool:
        """Read one range. True when more is waiting. Raises RpcError; nothing is lost by calling again."""
        head = await self._chain.head()
        if await self._roll_back(head.ref):
            return True
        reached = await self._reached()
        if head.number < reached:
            # An older head with our blocks still in it is a node that lags, not a reorg.
            return False
        first = max(reached + 1 - self._overlap, self._start)
        # The overlap never eats the whole range: each step moves on by one block at least.
        last = min(max(first + self._range - 1, reached + 1), head.number)
        if last < first:
            return False
        upto, logs = await self._read(first, last)
        added = await self._store.unseen(self.name, logs)
        if added or last > reached:
            await self._deliver(LogBatch((), added, upto, head.ref))
            await self._store.append(self.name, logs, upto, max(last - KEEP_BLOCKS, 0))
        self._range = min(self._range * 2, self._max_range)
        return last < head.number

    async def _reached(self) -> int:
        checkpoints = await self._store.checkpoints(self.name)
        return checkpoints[0].number if checkpoints else self._start - 1

    async def _read(self, first: int, last: int) -> tuple[BlockRef, list[LogRecord]]:
        """The logs of a range, and its last block, checked to be one chain: the block is the same before and after."""
        before = await self._block(last)
        try:
            logs = await self._chain.logs(first, last, self._addresses)
        except RpcError as error:
            # Nodes word their range limits in many ways and answer some by silence; a smaller range fits them all.
            if error.code is not ChainErrorCode.RPC_RATE_LIMITED:
                self._range = max(self._range // 2, 1)
            raise
        after = await self._block(last)
        if before != after:
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, "the chain changed while a range was read")
        for log in logs:
            of_ours = first <= log.block.number <= last and log.address in self._addresses
            if not of_ours or (log.block.number == last and log.block != after):
                raise RpcError(ChainErrorCode.RPC_INCONSISTENT, "the RPC answered with logs that were not asked for")
        return after, logs

    async def _block(self, number: int) -> BlockRef:
        block = await self._chain.block(number)
        if block is None:
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, f"the RPC's head is past block {number}, which it lacks")
        return block.ref

    async def _roll_back(self, head: BlockRef) -> bool:
        """Go back to the newest checkpoint that is still in the chain. True when something had to be undone."""
        checkpoints = await self._store.checkpoints(self.name)
        ancestor, reorganised = self._start - 1, False
        for checkpoint in checkpoints:
            if checkpoint.number > head.number:
                continue
            if await self._block(checkpoint.number) == checkpoint:
                ancestor = checkpoint.number
                break
            reorganised = True
        if not reorganised:
            return False
        removed = await self._store.above(self.name, ancestor)
        upto = next((checkpoint for checkpoint in checkpoints if checkpoint.number == ancestor), None)
        _log.warning("follower %s: reorg, back to block %d, %d logs undone", self.name, ancestor, len(removed))
        await self._deliver(LogBatch(removed, (), upto, head))
        await self._store.roll_back(self.name, ancestor)
        return True
