"""A ledger as a payer's journal holds it, read and moved on inside a transaction: for `purse` and `recovery`."""

from __future__ import annotations

from ..journal import LedgerKey, VoucherEntry, spending
from ..journal import vouchers as voucher_rows
from ..journal.books import Books
from ..journal.database import Transaction
from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.pricing import RoyaltySchedule
from ..protocol.structs import Voucher
from .checking import refused
from .ledger_book import Amounts


def charge_due(tx: Transaction, key: LedgerKey, seq: int | None) -> bool:
    """Whether a receipt may hold the settlement charge: none held it yet, and none with a smaller number came.

    It is due in the node's first receipt of the ledger; receipts of requests side by side may come in another order.
    """
    start = spending.baseline(tx, key.node, key.signer, key.pipeline)
    if start.tokens or start.compute or spending.charge_is_paid(tx, key.node, key.signer, key.pipeline):
        return False
    row = tx.one(
        "SELECT min(seq) FROM receipts WHERE payer = ? AND node = ? AND signer = ? AND pipeline = ? AND status <> 2",
        key.payer, key.node, key.signer, key.pipeline,
    )  # fmt: skip
    first = row[0]
    return first is None or (seq is not None and seq < first)


def check_neighbours(tx: Transaction, node: bytes, seq: int, previous: bytes) -> None:
    """Where we hold the receipt before or after this one, the two must name each other."""
    before = tx.one("SELECT digest FROM receipts WHERE node = ? AND seq = ?", node, seq - 1)
    if before is not None and before[0] != previous:
        raise refused("it does not name the node's receipt before it")


def adopt(tx: Transaction, key: LedgerKey, schedule: RoyaltySchedule, theirs: Signed[Voucher], used: Amounts) -> bool:
    """Take a voucher of ours that the node holds as ours, and go on where it shows that we had signed for.

    What was signed for counts as used as far as the node's own sums say so; the rest stays prepaid. Never lowers.
    """
    signed = amounts_of(theirs.value)
    entry = VoucherEntry(theirs, Address(key.signer), schedule.value(theirs.value))
    held = Books(tx).ledger(key)
    newest = held.newest_voucher
    if newest is None or signed.joined(amounts_of(newest.value)) == signed:
        voucher_rows.advance_voucher(tx, entry)
    start = spending.baseline(tx, key.node, key.signer, key.pipeline)
    covered = Amounts(min(signed.tokens, used.tokens), min(signed.compute, used.compute))
    tokens = max(start.tokens, covered.tokens - held.tally.tokens)
    compute = max(start.compute, covered.compute - held.tally.compute)
    if (tokens, compute) == (start.tokens, start.compute):
        return False
    spending.set_baseline(tx, key.node, key.signer, key.pipeline, spending.Baseline(tokens, compute))
    return True


def amounts_of(voucher: Voucher) -> Amounts:
    """A voucher's two numbers."""
    return Amounts(voucher.cumulative_tokens, voucher.cumulative_compute)
