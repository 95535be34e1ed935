"""Vouchers and redemptions as they reach a ledger. Checks no signature and computes no value: callers did both."""

from __future__ import annotations

from dataclasses import replace

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.structs import Voucher
from .books import Books, integer, wei
from .database import Transaction
from .values import Advanced, Ignored, Ledger, LedgerKey, VoucherEntry


def advance_voucher(transaction: Transaction, entry: VoucherEntry) -> Advanced | Ignored:
    """Keep the voucher if it is newer than the one held. Raises VOUCHER_CONFLICT where one amount grew, one fell."""
    voucher = entry.voucher.value
    integer(voucher.cumulative_tokens, "cumulativeTokens")
    wei(entry.value)
    books = Books(transaction)
    before = books.ledger(LedgerKey.of(voucher, entry.signer))
    if held := before.newest_voucher:
        covered = voucher.covers(held.value)
        if not covered or _amounts(voucher) == _amounts(held.value):
            return Ignored(before)
        if entry.value < before.voucher_value:
            raise OpenLoraError(ErrorCode.VOUCHER_CONFLICT, "a newer voucher is worth no less than the one before")
    if entry.value < voucher.cumulative_compute:
        raise OpenLoraError(ErrorCode.BAD_AMOUNT, "a voucher is worth its compute at least")
    after = replace(
        before,
        voucher=entry.voucher.pack(),
        voucher_compute=voucher.cumulative_compute,
        voucher_value=entry.value,
    )
    books.save("voucher", before, after)
    return Advanced(after)


def record_redeemed(transaction: Transaction, key: LedgerKey, value: int) -> Ledger:
    """Raise what the chain paid for this ledger, cumulative, to `value`; a lower value is old news."""
    books = Books(transaction)
    before = books.ledger(key)
    if value <= before.redeemed:
        return before
    after = replace(before, redeemed=value)
    books.save("redeemed", before, after)
    return after


def _amounts(voucher: Voucher) -> tuple[int, int]:
    return voucher.cumulative_tokens, voucher.cumulative_compute
