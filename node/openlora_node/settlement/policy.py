"""When a voucher goes to the chain, and with which others. Pure: no clock, no chain, no disk.

Redeeming costs gas, waiting risks the money. So a voucher waits until it is worth many times its gas, but not past an
age, and not at all once the escrow, the terms or the signer behind it begins to go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ..chainview import FOREVER
from ..journal import LedgerKey

BATCH_GAS = 40_000
"""A redeeming transaction before its first voucher."""
VOUCHER_GAS = 65_000
"""One more voucher of a channel that was redeemed before: a signature, an escrow, a node's books."""
FIRST_VOUCHER_GAS = 125_000
"""The same for a channel's first, whose slots are written for the first time."""
PIPELINE_GAS = 60_000
PART_GAS = 60_000
"""Registering a pipeline, and each of its artifacts. All these are upper bounds; a test holds them."""
COLLECT_GAS = 110_000
CLAIM_GAS = 90_000
HARVEST_GAS = 400_000
ANCHOR_GAS = 80_000
TRANSFER_MARGIN = 5
"""Claims and harvests wait for this many times the worth that a redemption waits for: nothing is at risk meanwhile."""

MAX_BATCH = 100
MAX_BATCH_GAS = 10_000_000


class Reason(StrEnum):
    """Why a voucher is redeemed now; the first that applies."""

    THAW = "thaw"
    """The payer takes its escrow out."""
    TERMS = "terms"
    """An artifact's terms were superseded: they redeem for the grace period only."""
    SIGNER = "signer"
    """The payer revoked the key that signed."""
    AGE = "age"
    WORTH = "worth"


@dataclass(frozen=True)
class Rules:
    """The operator's choice, from the configuration: a multiple of gas, an age in seconds."""

    gas_multiple: int = 20
    max_age_s: int = 7 * 86_400

    def is_worth(self, wei: int, gas: int, gas_price: int) -> bool:
        """Whether `wei` is the wanted multiple of what the gas costs."""
        return wei > 0 and wei >= self.gas_multiple * gas * gas_price


@dataclass(frozen=True)
class Due:
    """One ledger's newest voucher, as far as the chain has not accepted it. Amounts in wei, times in unix seconds."""

    key: LedgerKey
    value: int
    """What the newest voucher is worth beyond what the channel accepted."""
    since: int
    """Since when anything has been due."""
    balance: int
    """The escrow that it would be paid from, what thaws included."""
    thawing: int = 0
    thaw_end: int = 0
    terms_until: int = FOREVER
    """Until when its pipeline's terms redeem."""
    signer_ends: int = 0
    """When its signer stops to bind the payer, 0 for no end."""
    first: bool = False
    """Whether nothing of this channel was redeemed yet."""
    unregistered_parts: int = 0
    """Artifacts of its pipeline if that is not registered yet, else 0."""

    @property
    def payable(self) -> int:
        """What redeeming would bring out of escrow now, alone."""
        return min(self.value, self.balance)

    @property
    def gas(self) -> int:
        """An upper bound of what it adds to a batch."""
        registering = PIPELINE_GAS + PART_GAS * self.unregistered_parts if self.unregistered_parts else 0
        return (FIRST_VOUCHER_GAS if self.first else VOUCHER_GAS) + registering

    @property
    def deadline(self) -> int:
        """Last second at which it can be redeemed in full."""
        ends = [end for end in (self.thaw_end if self.thawing else 0, self.signer_ends) if end]
        return min(self.terms_until, *ends) if ends else self.terms_until


@dataclass(frozen=True)
class Batch:
    """Vouchers for one transaction, each with why it is in; `gas` is an upper bound."""

    dues: tuple[tuple[Due, Reason], ...]
    gas: int


def urgency(due: Due, rules: Rules, now: int) -> Reason | None:
    """Why it cannot wait, whatever it is worth; None when it can.

    An empty escrow pays nothing; but accepted vouchers become a debt on chain, which outlives terms and signers.
    """
    if due.value <= 0 or is_void(due, now):
        return None
    if due.thawing and due.payable:
        return Reason.THAW
    if due.terms_until < FOREVER:
        return Reason.TERMS
    if due.signer_ends:
        return Reason.SIGNER
    if due.payable and now - due.since >= rules.max_age_s:
        return Reason.AGE
    return None


def is_void(due: Due, now: int) -> bool:
    """Whether the contract would refuse it: its terms or its signer ended."""
    return due.terms_until < now or 0 < due.signer_ends <= now


def choose(dues: Iterable[Due], rules: Rules, gas_price: int, now: int) -> list[Batch]:
    """What to redeem now, in batches that fit a transaction: the urgent by deadline, then the most worth.

    Those that can wait go when each is worth its own gas so many times, and all together that of their transactions;
    they ride along where urgent ones go anyway.
    """
    urgent: list[tuple[Due, Reason]] = []
    waiting: list[tuple[Due, Reason]] = []
    for due in dues:
        if (reason := urgency(due, rules, now)) is not None:
            urgent.append((due, reason))
        elif not is_void(due, now) and rules.is_worth(due.payable, due.gas, gas_price):
            waiting.append((due, Reason.WORTH))
    urgent.sort(key=lambda item: item[0].deadline)
    waiting.sort(key=lambda item: item[0].payable, reverse=True)
    batches = _pack(urgent + waiting)
    return [
        batch
        for batch in batches
        if any(reason is not Reason.WORTH for _, reason in batch.dues)
        or rules.is_worth(sum(due.payable for due, _ in batch.dues), batch.gas, gas_price)
    ]


def _pack(items: list[tuple[Due, Reason]]) -> list[Batch]:
    """Fill one transaction after the other. A pipeline is registered once, by the first batch that needs it."""
    batches: list[Batch] = []
    chosen: list[tuple[Due, Reason]] = []
    gas, registered = BATCH_GAS, set[bytes]()
    for due, reason in items:
        more = due.gas
        if due.unregistered_parts and due.key.pipeline in registered:
            more -= PIPELINE_GAS + PART_GAS * due.unregistered_parts
        if chosen and (len(chosen) == MAX_BATCH or gas + more > MAX_BATCH_GAS):
            batches.append(Batch(tuple(chosen), gas))
            chosen, gas = [], BATCH_GAS
        chosen.append((due, reason))
        registered.add(due.key.pipeline)
        gas += more
    return [*batches, Batch(tuple(chosen), gas)] if chosen else batches
