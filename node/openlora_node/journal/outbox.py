"""Intents to transact, as rows of the journal: what openlora_chain's outbox keeps, in everyone else's transactions.

The functions run inside a journal transaction, so that a voucher and the intent to redeem it commit together;
`JournalOutbox` wraps each in a transaction of its own. Knows no chain and decides nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.store import Attempt, Inclusion, Intent, IntentState, NewIntent, Order

from ..protocol.errors import ErrorCode, OpenLoraError
from .database import Transaction, connect, storage_errors
from .journal import Journal
from .schema import bundled, check_version

T = TypeVar("T")
MAX_QUEUED_INTENTS = 250
MAX_OPEN = 512

_COLUMNS = (
    "seq, kind, subject, chain_id, sender, recipient, data, value, gas_limit, state, nonce, request, note, reverts,"
    " tx_hash, block_number, block_hash, succeeded, created_at, updated_at"
)
_INTENTS = f"SELECT {_COLUMNS} FROM intents"  # noqa: S608 - a constant
_ATTEMPTS = (
    "SELECT nonce, hash, raw, gas, max_fee, priority_fee, signed_at, signed_block, cancels"
    " FROM attempts WHERE intent = ? ORDER BY number"
)
_OPEN = "(state IN ('queued', 'signed', 'sent', 'mined') OR request IS NOT NULL)"
_UNMINED = (IntentState.QUEUED, IntentState.SIGNED, IntentState.SENT)
_HOLDING = (IntentState.SIGNED, IntentState.SENT, IntentState.MINED)


def submit_intent(transaction: Transaction, new: NewIntent, now: int) -> Intent:
    """Store the intent, or return the one of its kind and subject. See `OutboxStore.submit`."""
    if held := find_intent(transaction, new.id):
        if held.request != new:
            raise ChainError(ChainErrorCode.INTENT_CONFLICT)
        return held
    queued = transaction.one(
        "SELECT count(*) FROM intents WHERE sender = ? AND chain_id = ? AND state = 'queued'",
        new.sender,
        str(new.chain_id),
    )
    if queued[0] >= MAX_QUEUED_INTENTS:
        raise ChainError(ChainErrorCode.OUTBOX_FULL)
    transaction.write(
        "outbox.submit",
        "INSERT INTO intents (id, kind, subject, chain_id, sender, recipient, data, value, gas_limit, state,"
        " created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?)",
        new.id,
        new.kind,
        new.subject,
        str(new.chain_id),
        new.sender,
        new.to,
        new.data,
        _word(new.value),
        new.gas_limit,
        now,
        now,
    )
    stored = find_intent(transaction, new.id)
    assert stored is not None
    return stored


def find_intent(transaction: Transaction, identity: bytes) -> Intent | None:
    """The intent with this id."""
    row = transaction.one(f"{_INTENTS} WHERE id = ?", identity)
    return None if row is None else _intent(transaction, row)


def open_intents(transaction: Transaction, sender: bytes, chain_id: int) -> list[Intent]:
    """Open intents of one key by `seq`, and closed ones with an order; those that hold a nonce never fall out."""
    rows = transaction.all(
        f"{_INTENTS} WHERE sender = ? AND chain_id = ? AND {_OPEN} ORDER BY state = 'queued', seq LIMIT ?",
        sender,
        str(chain_id),
        MAX_OPEN,
    )
    return sorted((_intent(transaction, row) for row in rows), key=lambda intent: intent.seq)


def recent_intents(transaction: Transaction, limit: int) -> list[Intent]:
    """Intents of every state, newest first."""
    return [_intent(transaction, row) for row in transaction.all(f"{_INTENTS} ORDER BY seq DESC LIMIT ?", limit)]


def record_attempt(transaction: Transaction, identity: bytes, attempt: Attempt) -> None:
    """Keep a signed transaction before it is sent; the intent holds its nonce from now on."""
    held = _held(transaction, identity, *_UNMINED)
    taken = transaction.one(
        "SELECT 1 FROM intents WHERE sender = ? AND chain_id = ? AND nonce = ? AND seq <> ?"
        " AND state IN ('signed', 'sent', 'mined')",
        held.request.sender,
        str(held.request.chain_id),
        attempt.nonce,
        held.seq,
    )
    if taken or (held.nonce is not None and held.nonce != attempt.nonce):
        raise ChainError(ChainErrorCode.INTENT_STATE, f"nonce {attempt.nonce} is not this transaction's to use")
    transaction.write(
        "outbox.attempt",
        "INSERT INTO attempts (hash, intent, number, nonce, raw, gas, max_fee, priority_fee, signed_at, signed_block,"
        " cancels) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        attempt.hash,
        held.seq,
        len(held.attempts),
        attempt.nonce,
        attempt.raw,
        attempt.gas,
        _word(attempt.max_fee),
        _word(attempt.priority_fee),
        attempt.signed_at,
        attempt.signed_block,
        attempt.cancels,
    )
    transaction.write(
        "outbox.signed",
        "UPDATE intents SET state = 'signed', nonce = ?, note = NULL, updated_at = ? WHERE seq = ?",
        attempt.nonce,
        attempt.signed_at,
        held.seq,
    )


def mark_sent(transaction: Transaction, identity: bytes, now: int) -> None:
    """A node has the newest attempt."""
    held = _held(transaction, identity, IntentState.SIGNED, IntentState.SENT)
    if held.state is IntentState.SIGNED:
        transaction.write(
            "outbox.sent", "UPDATE intents SET state = 'sent', updated_at = ? WHERE seq = ?", now, held.seq
        )


def mark_mined(transaction: Transaction, identity: bytes, inclusion: Inclusion, now: int) -> None:
    """An attempt stands in a block."""
    held = _held(transaction, identity, *_HOLDING)
    if inclusion.tx_hash not in {attempt.hash for attempt in held.live_attempts}:
        raise ChainError(ChainErrorCode.INTENT_STATE, "the mined transaction is none of this intent's attempts")
    transaction.write(
        "outbox.mined",
        "UPDATE intents SET state = 'mined', tx_hash = ?, block_number = ?, block_hash = ?, succeeded = ?,"
        " updated_at = ? WHERE seq = ?",
        inclusion.tx_hash,
        inclusion.block_number,
        inclusion.block_hash,
        inclusion.succeeded,
        now,
        held.seq,
    )


def mark_reorged(transaction: Transaction, identity: bytes, now: int) -> None:
    """The block is gone."""
    held = _held(transaction, identity, IntentState.MINED)
    transaction.write(
        "outbox.reorged",
        "UPDATE intents SET state = 'sent', tx_hash = NULL, block_number = NULL, block_hash = NULL, succeeded = NULL,"
        " updated_at = ? WHERE seq = ?",
        now,
        held.seq,
    )


def requeue(transaction: Transaction, identity: bytes, note: str, now: int, *, reverted: bool) -> None:
    """Give the nonce back and wait for another; the attempts stay on record."""
    held = _held(transaction, identity, *_HOLDING, IntentState.FAILED, IntentState.CANCELLED)
    transaction.write(
        "outbox.requeue",
        "UPDATE intents SET state = 'queued', nonce = NULL, request = NULL, note = ?, reverts = reverts + ?,"
        " tx_hash = NULL, block_number = NULL, block_hash = NULL, succeeded = NULL, updated_at = ? WHERE seq = ?",
        note,
        int(reverted),
        now,
        held.seq,
    )


def close(transaction: Transaction, identity: bytes, state: IntentState, note: str | None, now: int) -> None:
    """The end: FINAL, FAILED or CANCELLED."""
    assert not state.is_open
    held = _held(transaction, identity, *_HOLDING, IntentState.QUEUED)
    transaction.write(
        "outbox.close",
        "UPDATE intents SET state = ?, note = ?, request = NULL, updated_at = ? WHERE seq = ?",
        state.value,
        note,
        now,
        held.seq,
    )


def set_order(transaction: Transaction, identity: bytes, order: Order | None) -> None:
    """Keep or clear what the operator asked for."""
    held = _held(transaction, identity, *IntentState)
    transaction.write(
        "outbox.order", "UPDATE intents SET request = ? WHERE seq = ?", order.value if order else None, held.seq
    )


def set_note(transaction: Transaction, identity: bytes, note: str | None) -> None:
    """Keep why it waits."""
    held = _held(transaction, identity, *IntentState)
    transaction.write("outbox.note", "UPDATE intents SET note = ? WHERE seq = ?", note, held.seq)


class JournalOutbox:
    """The journal as openlora_chain's OutboxStore: each method one transaction."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def submit(self, new: NewIntent, now: int) -> Intent:
        """See `submit_intent`."""
        return await self._run(lambda tx: submit_intent(tx, new, now))

    async def find(self, identity: bytes) -> Intent | None:
        """See `find_intent`."""
        return await self._run(lambda tx: find_intent(tx, identity))

    async def open_intents(self, sender: bytes, chain_id: int) -> Sequence[Intent]:
        """See `open_intents`."""
        return await self._run(lambda tx: open_intents(tx, sender, chain_id))

    async def recent(self, limit: int) -> Sequence[Intent]:
        """See `recent_intents`."""
        return await self._run(lambda tx: recent_intents(tx, limit))

    async def record_attempt(self, identity: bytes, attempt: Attempt) -> None:
        """See `record_attempt`."""
        await self._run(lambda tx: record_attempt(tx, identity, attempt))

    async def mark_sent(self, identity: bytes, now: int) -> None:
        """See `mark_sent`."""
        await self._run(lambda tx: mark_sent(tx, identity, now))

    async def mark_mined(self, identity: bytes, inclusion: Inclusion, now: int) -> None:
        """See `mark_mined`."""
        await self._run(lambda tx: mark_mined(tx, identity, inclusion, now))

    async def mark_reorged(self, identity: bytes, now: int) -> None:
        """See `mark_reorged`."""
        await self._run(lambda tx: mark_reorged(tx, identity, now))

    async def requeue(self, identity: bytes, note: str, now: int, *, reverted: bool = False) -> None:
        """See `requeue`."""
        await self._run(lambda tx: requeue(tx, identity, note, now, reverted=reverted))

    async def close(self, identity: bytes, state: IntentState, note: str | None, now: int) -> None:
        """See `close`."""
        await self._run(lambda tx: close(tx, identity, state, note, now))

    async def set_order(self, identity: bytes, order: Order | None) -> None:
        """See `set_order`."""
        await self._run(lambda tx: set_order(tx, identity, order))

    async def set_note(self, identity: bytes, note: str | None) -> None:
        """See `set_note`."""
        await self._run(lambda tx: set_note(tx, identity, note))

    async def _run(self, operation: Callable[[Transaction], T]) -> T:
        return await self._journal.transact(operation)


def _held(transaction: Transaction, identity: bytes, *states: IntentState) -> Intent:
    held = find_intent(transaction, identity)
    if held is None:
        raise ChainError(ChainErrorCode.INTENT_UNKNOWN)
    if held.state not in states:
        raise ChainError(ChainErrorCode.INTENT_STATE, f"the transaction is {held.state.value}: too late for this")
    return held


def _intent(transaction: Transaction, row: tuple[Any, ...]) -> Intent:
    (seq, kind, subject, chain_id, sender, recipient, data, value, gas_limit, state, nonce, order, note, reverts,
     tx_hash, block_number, block_hash, succeeded, created_at, updated_at) = row  # fmt: skip
    request = NewIntent(kind, subject, int(chain_id), sender, recipient, data, _integer(value), gas_limit)
    inclusion = None if tx_hash is None else Inclusion(tx_hash, block_number, block_hash, bool(succeeded))
    return Intent(
        request=request,
        seq=seq,
        state=IntentState(state),
        created_at=created_at,
        updated_at=updated_at,
        nonce=nonce,
        attempts=tuple(_attempt(attempt) for attempt in transaction.all(_ATTEMPTS, seq)),
        inclusion=inclusion,
        order=None if order is None else Order(order),
        note=note,
        reverts=reverts,
    )


def _attempt(row: tuple[Any, ...]) -> Attempt:
    nonce, tx_hash, raw, gas, max_fee, priority_fee, signed_at, signed_block, cancels = row
    return Attempt(
        nonce, tx_hash, raw, gas, _integer(max_fee), _integer(priority_fee), signed_at, signed_block, bool(cancels)
    )


def _word(amount: int) -> bytes:
    return amount.to_bytes(32, "big")


def _integer(word: bytes) -> int:
    return int.from_bytes(word, "big")


def read_intents(path: Path, limit: int) -> list[Intent]:
    """The newest intents of a journal that another process may be writing. Raises NOT_FOUND, JOURNAL_*, STORAGE_*."""
    with _opened(path, "ro") as connection:
        return recent_intents(Transaction(connection), limit)


def write_order(path: Path, identity: bytes, order: Order) -> None:
    """Leave an order beside a running writer: one short transaction, which SQLite puts between its own."""
    with _opened(path, "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            set_order(Transaction(connection), identity, order)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextmanager
def _opened(path: Path, mode: Literal["rw", "ro"]) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"there is no journal named {path.name} here")
    with storage_errors(), closing(connect(path, mode)) as connection:
        version = bundled()[-1].version
        if check_version(connection, version) < version:
            raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "the journal is of an older version: start the node once")
        yield connection
