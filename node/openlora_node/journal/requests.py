"""Requests as the journal holds them: nonce and reservation from the door to the receipt, or to an interruption.

Decides only what must be decided inside the transaction: is this nonce new, and can the escrow still pay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.structs import CLOCK_SKEW_S, Request
from .books import OPEN, Books, integer, number, wei
from .database import Transaction
from .pipelines import KnownPipeline, remember
from .receipts import receipt_of
from .values import (
    Admission,
    Admitted,
    AlreadyDone,
    AlreadyRunning,
    EscrowSnapshot,
    LedgerKey,
    RequestState,
    VoucherEntry,
)
from .vouchers import advance_voucher

NONCE_GRACE_S = CLOCK_SKEW_S
"""A request counts as live for this long after it expired; then it is refused, so its nonce may be forgotten."""


@dataclass(frozen=True)
class Entry:
    """A request at the journal's door, with what the caller knows of it."""

    request: Signed[Request]
    digest: Digest
    signer: bytes
    escrow: EscrowSnapshot
    opening: VoucherEntry | None
    debt_allowed: int
    pipeline: KnownPipeline | None = None

    @property
    def key(self) -> LedgerKey:
        """The ledger that the request counts in."""
        return LedgerKey.of(self.request.value, self.signer)


def admit(transaction: Transaction, entry: Entry, now: int, max_live_nonces: int) -> Admission:
    """Take nonce, opening voucher and reservation together, or say why not."""
    request = entry.request.value
    row = transaction.one(
        "SELECT digest, state FROM requests WHERE payer = ? AND nonce = ?", request.payer, request.nonce
    )
    if row is not None and row[0] != entry.digest:
        raise OpenLoraError(ErrorCode.NONCE_REUSED)
    state = None if row is None else row[1]
    if state == RequestState.RUNNING:
        return AlreadyRunning(entry.digest)
    if state == RequestState.DONE:
        stored = receipt_of(transaction, entry.digest)
        if stored is None:
            raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT, "a finished request has no receipt")
        return AlreadyDone(entry.digest, stored)
    if now > request.expires_at + NONCE_GRACE_S:
        raise OpenLoraError(ErrorCode.REQUEST_EXPIRED)
    if state is None:
        _check_live_nonces(transaction, entry.signer, now, max_live_nonces)
    if entry.pipeline is not None:
        remember(transaction, request.pipeline_id, entry.pipeline)
    if entry.opening is not None:
        _open_with_voucher(transaction, entry)
    _reserve(transaction, entry)
    _insert(transaction, entry, now)
    return Admitted(entry.digest, request.max_fee)


def _check_live_nonces(transaction: Transaction, signer: bytes, now: int, limit: int) -> None:
    live = transaction.one(
        "SELECT count(*) FROM (SELECT 1 FROM requests WHERE signer = ? AND expires_at >= ? LIMIT ?)",
        signer, now - NONCE_GRACE_S, limit,
    )[0]  # fmt: skip
    if live >= limit:
        raise OpenLoraError(ErrorCode.TOO_MANY_NONCES)


def _open_with_voucher(transaction: Transaction, entry: Entry) -> None:
    opening = entry.opening
    assert opening is not None
    if LedgerKey.of(opening.voucher.value, opening.signer) != entry.key:
        raise OpenLoraError(
            ErrorCode.VOUCHER_CONFLICT, "the opening voucher names the request's payer, node, pipeline and signer"
        )
    advance_voucher(transaction, opening)


def _reserve(transaction: Transaction, entry: Entry) -> None:
    request = entry.request.value
    books = Books(transaction)
    account = books.account(request.payer, request.node)
    if account.owed > entry.debt_allowed:
        raise OpenLoraError(
            ErrorCode.DEBT_OUTSTANDING, f"send vouchers for the {account.owed} wei that earlier responses cost"
        )
    before = books.ledger(entry.key)
    after = replace(before, reserved=before.reserved + request.max_fee)
    # What this ledger's vouchers prepaid beyond its committed fees is used up first, not reserved twice.
    needed = after.exposure - before.exposure
    spendable = entry.escrow.balance - entry.escrow.thawing - account.exposure
    if spendable < needed:
        raise OpenLoraError(
            ErrorCode.ESCROW_TOO_LOW, f"deposit {needed - spendable} wei more to this payer's escrow with this node"
        )
    books.save("admit", before, after)


def _insert(transaction: Transaction, entry: Entry, now: int) -> None:
    request = entry.request.value
    transaction.write(
        "admit.requests",
        "INSERT INTO requests (digest, payer, node, signer, pipeline, nonce, max_fee, expires_at, admitted_at, state,"
        " signed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'running', ?) ON CONFLICT (digest)"
        " DO UPDATE SET state = 'running', admitted_at = excluded.admitted_at,"
        " signer = excluded.signer, signed = excluded.signed",
        entry.digest, request.payer, request.node, entry.signer, request.pipeline_id, request.nonce,
        wei(request.max_fee), integer(request.expires_at, "expiresAt"), now, entry.request.pack(),
    )  # fmt: skip


def interrupt(transaction: Transaction, digest: Digest) -> bool:
    """Release a running request's reservation; it costs nothing and may be admitted again. False if it does not run."""
    row = transaction.one(
        "SELECT payer, node, signer, pipeline, max_fee FROM requests WHERE digest = ? AND state = 'running'", digest
    )
    if row is None:
        return False
    books = Books(transaction)
    before = books.ledger(LedgerKey(*row[:4]))
    books.save("interrupt", before, replace(before, reserved=before.reserved - number(row[4])))
    transaction.write("interrupt.requests", "UPDATE requests SET state = 'interrupted' WHERE digest = ?", digest)
    return True


def interrupt_running(transaction: Transaction) -> int:
    """At start-up: whatever still runs on paper was lost with its process. Returns how many."""
    books = Books(transaction)
    for before in books.reserved_ledgers():
        books.save("interrupt_running", before, replace(before, reserved=0))
    return transaction.write(
        "interrupt_running.requests",
        f"UPDATE requests SET state = 'interrupted' WHERE state = 'running' AND {OPEN}",  # noqa: S608 - a constant
    )


def prune(transaction: Transaction, now: int, limit: int) -> int:
    """Forget at most `limit` interrupted requests that could no longer be admitted. Returns how many."""
    return transaction.write(
        "prune.requests",
        "DELETE FROM requests WHERE digest IN (SELECT digest FROM requests"  # noqa: S608 - a constant
        f" WHERE state = 'interrupted' AND {OPEN} AND expires_at < ? ORDER BY expires_at LIMIT ?)",
        now - NONCE_GRACE_S, limit,
    )  # fmt: skip
