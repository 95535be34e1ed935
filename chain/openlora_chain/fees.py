"""EIP-1559 fees: what a first attempt offers and what a replacement offers. Pure; all amounts are wei per gas."""

from __future__ import annotations

from dataclasses import dataclass

POOL_MINIMUM_RAISE_PERCENT = 10
"""Nodes refuse a same-nonce replacement that raises either fee by less."""


@dataclass(frozen=True, slots=True)
class Fees:
    """`max_fee` bounds base fee plus tip; `priority` is the tip."""

    max_fee: int
    priority: int


def first_fees(base_fee: int, priority: int, cap: int) -> Fees | None:
    """Room for the base fee to double, within `cap`. None when the base fee alone is above the cap: wait."""
    if base_fee > cap:
        return None
    max_fee = min(2 * base_fee + priority, cap)
    return Fees(max_fee, min(priority, max_fee))


def raised_fees(previous: Fees, base_fee: int, priority: int, cap: int, percent: int) -> Fees | None:
    """Both fees up by `percent`, rounded up, and at least what a first attempt would offer now.

    None when the cap leaves less than the raise that nodes ask for: then the old attempt stays.
    """
    wanted = Fees(
        max(_raise(previous.max_fee, percent), 2 * base_fee + priority),
        max(_raise(previous.priority, percent), priority),
    )
    fees = Fees(min(wanted.max_fee, cap), min(wanted.priority, wanted.max_fee, cap))
    least = Fees(
        _raise(previous.max_fee, POOL_MINIMUM_RAISE_PERCENT), _raise(previous.priority, POOL_MINIMUM_RAISE_PERCENT)
    )
    return fees if fees.max_fee >= least.max_fee and fees.priority >= least.priority else None


def _raise(amount: int, percent: int) -> int:
    """`amount` plus `percent`, rounded up, and always more than before."""
    return max(-(-amount * (100 + percent) // 100), amount + 1)
