"""What log followers have read, as rows of the journal: openlora_chain's LogStore. Knows no chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from openlora_chain.store import BlockRef, LogRecord

from .database import Transaction
from .journal import Journal

T = TypeVar("T")
MAX_CHECKPOINTS = 512

_LOGS = "SELECT number, block_hash, log_index, tx_hash, address, topics, data FROM followed_logs"


def checkpoints(transaction: Transaction, follower: str) -> list[BlockRef]:
    """Blocks read up to, newest first."""
    rows = transaction.all(
        "SELECT number, hash FROM followed_blocks WHERE follower = ? ORDER BY number DESC LIMIT ?",
        follower,
        MAX_CHECKPOINTS,
    )
    return [BlockRef(number, block_hash) for number, block_hash in rows]


def unseen_logs(transaction: Transaction, follower: str, logs: Sequence[LogRecord]) -> list[LogRecord]:
    """Logs that are not stored."""
    return [log for log in logs if not _is_stored(transaction, follower, log)]


def logs_above(transaction: Transaction, follower: str, number: int) -> list[LogRecord]:
    """Stored logs of blocks above a height, newest first."""
    rows = transaction.all(
        f"{_LOGS} WHERE follower = ? AND number > ? ORDER BY number DESC, log_index DESC",
        follower,
        number,
    )
    return [_log(row) for row in rows]


def append_logs(
    transaction: Transaction, follower: str, logs: Sequence[LogRecord], upto: BlockRef, keep_from: int
) -> None:
    """Store logs and checkpoint; forget what is older than `keep_from` or beyond `MAX_CHECKPOINTS`."""
    for log in logs:
        if not _is_stored(transaction, follower, log):
            transaction.write(
                "logs.append",
                "INSERT INTO followed_logs (follower, number, log_index, block_hash, tx_hash, address, topics, data)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                follower,
                log.block.number,
                log.index,
                log.block.hash,
                log.tx_hash,
                log.address,
                b"".join(log.topics),
                log.data,
            )
    transaction.write(
        "logs.checkpoint",
        "INSERT INTO followed_blocks (follower, number, hash) VALUES (?, ?, ?)"
        " ON CONFLICT (follower, number) DO UPDATE SET hash = excluded.hash",
        follower,
        upto.number,
        upto.hash,
    )
    transaction.write("logs.forget", "DELETE FROM followed_logs WHERE follower = ? AND number < ?", follower, keep_from)
    transaction.write(
        "logs.forget_blocks",
        "DELETE FROM followed_blocks WHERE follower = ? AND number <"
        " (SELECT min(number) FROM (SELECT number FROM followed_blocks WHERE follower = ?"
        " ORDER BY number DESC LIMIT ?))",
        follower,
        follower,
        MAX_CHECKPOINTS,
    )


def roll_back_logs(transaction: Transaction, follower: str, to: int) -> None:
    """Forget everything above a height."""
    transaction.write("logs.undo", "DELETE FROM followed_logs WHERE follower = ? AND number > ?", follower, to)
    transaction.write("logs.undo_blocks", "DELETE FROM followed_blocks WHERE follower = ? AND number > ?", follower, to)


class JournalLogs:
    """The journal as openlora_chain's LogStore: each method one transaction."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def checkpoints(self, follower: str) -> Sequence[BlockRef]:
        """See `checkpoints`."""
        return await self._run(lambda tx: checkpoints(tx, follower))

    async def unseen(self, follower: str, logs: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """See `unseen_logs`."""
        return await self._run(lambda tx: unseen_logs(tx, follower, logs))

    async def above(self, follower: str, number: int) -> Sequence[LogRecord]:
        """See `logs_above`."""
        return await self._run(lambda tx: logs_above(tx, follower, number))

    async def append(self, follower: str, logs: Sequence[LogRecord], upto: BlockRef, keep_from: int) -> None:
        """See `append_logs`."""
        await self._run(lambda tx: append_logs(tx, follower, logs, upto, keep_from))

    async def roll_back(self, follower: str, to: int) -> None:
        """See `roll_back_logs`."""
        await self._run(lambda tx: roll_back_logs(tx, follower, to))

    async def _run(self, operation: Callable[[Transaction], T]) -> T:
        return await self._journal.transact(operation)


def _is_stored(transaction: Transaction, follower: str, log: LogRecord) -> bool:
    return (
        transaction.one(
            "SELECT 1 FROM followed_logs WHERE follower = ? AND number = ? AND log_index = ? AND block_hash = ?",
            follower,
            log.block.number,
            log.index,
            log.block.hash,
        )
        is not None
    )


def _log(row: tuple[Any, ...]) -> LogRecord:
    number, block_hash, index, tx_hash, address, topics, data = row
    words = tuple(topics[at : at + 32] for at in range(0, len(topics), 32))
    return LogRecord(BlockRef(number, block_hash), index, tx_hash, address, words, data)
