"""Receipts: the chain of what was run. A commit inserts the receipt, frees the reservation and advances the ledger.

Computes no price: the draft says what the response cost, and is refused unless it fits request, slot and ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import ZERO32, Digest
from ..protocol.pricing import Tally
from ..protocol.structs import Receipt, ReceiptStatus, Request
from .books import Books, integer, wei
from .database import Transaction
from .values import LedgerKey, ReceiptDraft, ReceiptSlot, RequestState, StoredReceipt

Build = Callable[[ReceiptSlot], ReceiptDraft]
SALT_LENGTH = 32


@dataclass(frozen=True)
class OpenRequest:
    """A request without a receipt, and the signer whose ledger it counts in."""

    digest: Digest
    request: Request
    signed: Signed[Request]
    state: RequestState
    key: LedgerKey


def receipt_of(transaction: Transaction, request_digest: Digest) -> StoredReceipt | None:
    """The receipt of a request, if it has one."""
    row = transaction.one("SELECT signed, digest, salt FROM receipts WHERE request_digest = ?", request_digest)
    return None if row is None else StoredReceipt(Signed.unpack(Receipt, row[0]), Digest(row[1]), row[2])


def newest_receipt(transaction: Transaction, node: bytes) -> tuple[int, Digest] | None:
    """Sequence number and digest of a node's newest receipt."""
    row = transaction.one("SELECT seq, digest FROM receipts WHERE node = ? ORDER BY seq DESC LIMIT 1", node)
    return None if row is None else (row[0], Digest(row[1]))


def commit_receipt(
    transaction: Transaction, domain: Domain, request_digest: Digest, seq_floor: int, build: Build
) -> StoredReceipt:
    """Fill the next slot of the chain with what `build` signs; the receipt that is stored already, if there is one."""
    if stored := receipt_of(transaction, request_digest):
        return stored
    found = _open_request(transaction, request_digest)
    if found.state != RequestState.RUNNING:
        raise OpenLoraError(ErrorCode.RECEIPT_INVALID, "the request was interrupted: admit it again before its receipt")
    seq, previous = newest_receipt(transaction, found.request.node) or (-1, Digest(ZERO32))
    slot = ReceiptSlot(
        request=found.signed,
        request_digest=request_digest,
        seq=integer(max(seq + 1, seq_floor), "seq"),
        previous=previous,
        before=Books(transaction).ledger(found.key).tally,
    )
    draft = build(slot)
    receipt = draft.receipt.value
    if (receipt.seq, receipt.previous) != (slot.seq, slot.previous):
        raise _invalid("it does not fill the next slot of the chain")
    return _insert(transaction, domain, found, draft)


def accept_receipt(
    transaction: Transaction, domain: Domain, request_digest: Digest, draft: ReceiptDraft
) -> StoredReceipt:
    """Keep a receipt that a node sent. A payer sees only its own links of the chain, so their order is not judged."""
    if stored := receipt_of(transaction, request_digest):
        return stored
    receipt = draft.receipt.value
    integer(receipt.seq, "seq")
    if transaction.one("SELECT 1 FROM receipts WHERE node = ? AND seq = ?", receipt.node, receipt.seq):
        raise _invalid("the node gave its sequence number to another receipt")
    return _insert(transaction, domain, _open_request(transaction, request_digest), draft)


def _open_request(transaction: Transaction, request_digest: Digest) -> OpenRequest:
    row = transaction.one("SELECT signed, state, signer FROM requests WHERE digest = ?", request_digest)
    if row is None:
        raise OpenLoraError(ErrorCode.NOT_FOUND)
    signed = Signed.unpack(Request, row[0])
    return OpenRequest(request_digest, signed.value, signed, RequestState(row[1]), LedgerKey.of(signed.value, row[2]))


def _insert(transaction: Transaction, domain: Domain, found: OpenRequest, draft: ReceiptDraft) -> StoredReceipt:
    books = Books(transaction)
    before = books.ledger(found.key)
    _check(found, draft, before.tally)
    receipt, key = draft.receipt.value, found.key
    held = found.request.max_fee if found.state == RequestState.RUNNING else 0
    after = replace(before, tally=draft.after, fee=before.fee + receipt.fee, reserved=before.reserved - held)
    books.save("receipt", before, after)
    digest = Digest(receipt.digest(domain))
    transaction.write("receipt.requests", "UPDATE requests SET state = 'done' WHERE digest = ?", found.digest)
    transaction.write(
        "receipt.receipts",
        "INSERT INTO receipts (node, seq, digest, previous, request_digest, payer, signer, pipeline, status, tokens,"
        " compute, royalties, salt, signed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        receipt.node, receipt.seq, digest, receipt.previous, found.digest, key.payer, key.signer, key.pipeline,
        receipt.status, integer(receipt.tokens, "tokens"), wei(receipt.compute), wei(receipt.royalties),
        draft.salt, draft.receipt.pack(),
    )  # fmt: skip
    if draft.evidence:
        transaction.write(
            "receipt.evidence",
            "INSERT INTO evidence (node, seq, data) VALUES (?, ?, ?)",
            receipt.node, receipt.seq, draft.evidence,
        )  # fmt: skip
    return StoredReceipt(draft.receipt, digest, draft.salt)


def _check(found: OpenRequest, draft: ReceiptDraft, before: Tally) -> None:
    receipt, request, after = draft.receipt.value, found.request, draft.after
    if receipt.request_digest != found.digest:
        raise _invalid("it names another request")
    if (receipt.payer, receipt.node, receipt.pipeline_id) != (request.payer, request.node, request.pipeline_id):
        raise _invalid("its payer, node or pipeline differs from the request's")
    if receipt.fee > request.max_fee:
        raise _invalid("it costs more than maxFee")
    if after.tokens - before.tokens != receipt.tokens or after.compute - before.compute != receipt.compute:
        raise _invalid("its tokens or compute differ from what the ledger grows by")
    if after.compute_micro_wei < before.compute_micro_wei:
        raise _invalid("a ledger only grows")
    if receipt.status == ReceiptStatus.FAILED and after != before:
        raise _invalid("a failed response leaves the ledger as it was")
    if len(draft.salt) != SALT_LENGTH:
        raise _invalid(f"the salt of its leaf is {SALT_LENGTH} bytes")


def _invalid(reason: str) -> OpenLoraError:
    return OpenLoraError(ErrorCode.RECEIPT_INVALID, f"the receipt is refused: {reason}")
