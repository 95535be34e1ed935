"""A LogStore in memory, for who keeps no journal: every start reads the chain again. Knows no chain."""

from __future__ import annotations

from collections.abc import Sequence

from openlora_chain.store import BlockRef, LogRecord

MAX_CHECKPOINTS = 512


class MemoryLogs:
    """See `openlora_chain.store.LogStore`. Holds one follower's progress; its name is not looked at."""

    def __init__(self) -> None:
        self._checkpoints: list[BlockRef] = []
        self._logs: dict[tuple[int, int, bytes], LogRecord] = {}

    async def checkpoints(self, follower: str) -> Sequence[BlockRef]:
        """Newest first."""
        return self._checkpoints[::-1]

    async def unseen(self, follower: str, logs: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Those not appended before."""
        return [log for log in logs if _key(log) not in self._logs]

    async def above(self, follower: str, number: int) -> Sequence[LogRecord]:
        """Newest first."""
        found = [log for log in self._logs.values() if log.block.number > number]
        return sorted(found, key=lambda log: (log.block.number, log.index), reverse=True)

    async def append(self, follower: str, logs: Sequence[LogRecord], upto: BlockRef, keep_from: int) -> None:
        """Keep the logs and the checkpoint; forget what lies below `keep_from`."""
        self._logs = {key: log for key, log in self._logs.items() if key[0] >= keep_from}
        self._logs.update({_key(log): log for log in logs})
        kept = [block for block in self._checkpoints if block.number != upto.number]
        self._checkpoints = sorted([*kept, upto], key=lambda block: block.number)[-MAX_CHECKPOINTS:]

    async def roll_back(self, follower: str, to: int) -> None:
        """Forget everything above a height."""
        self._checkpoints = [block for block in self._checkpoints if block.number <= to]
        self._logs = {key: log for key, log in self._logs.items() if key[0] <= to}


def _key(log: LogRecord) -> tuple[int, int, bytes]:
    return log.block.number, log.index, log.block.hash
