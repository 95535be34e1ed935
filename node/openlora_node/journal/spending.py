"""What a payer spends: every signed request with what it may still cost, the sums that caps are held against.

The functions run inside a journal transaction, so that a request is reserved against the caps and admitted in one step:
requests side by side cannot pass a cap together. Decides nothing but whether a sum fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pricing import MAX_WEI
from .books import integer, number, wei, wide
from .database import Transaction

DAY_S = 86_400
SLOT_S = 300
"""Sums are kept of so many seconds: the soak of many requests spent its time adding up a day's rows for each."""
FILLED = -1
MAX_LISTED = 10_000
"""Rows that one listing gives."""

_COLUMNS = (
    "request_digest, node, signer, pipeline, at, state, amount, given, model, prompt_tokens, quote, preimage, charged,"
    " received, note"
)
_SPENDS = f"SELECT {_COLUMNS} FROM spends"  # noqa: S608 - a constant


class SpendState(StrEnum):
    """Where the money of one request stands."""

    OPEN = "open"
    """It may cost up to its maxFee."""
    PAID = "paid"
    """Its receipt was checked and kept; `amount` is its fee."""
    LOST = "lost"
    """No receipt came, or none that held; `amount` is `given`."""


@dataclass(frozen=True)
class Spend:
    """One signed request. Amounts are wei, `at` is unix seconds, `quote` is packed and signed, `preimage` packed."""

    request_digest: bytes
    node: bytes
    signer: bytes
    pipeline: bytes
    at: int
    amount: int
    given: int
    """What the vouchers signed for it are worth beyond those that the node held before: the most that it can take."""
    model: str
    prompt_tokens: int
    quote: bytes
    preimage: bytes
    state: SpendState = SpendState.OPEN
    charged: bool = False
    """Whether its receipt held the settlement charge of its ledger."""
    received: bytes | None = None
    """outputHash of the tokens that had come when it was lost; None if that is not known."""
    note: str | None = None


@dataclass(frozen=True)
class Baseline:
    """Cumulative tokens and compute (wei) that a ledger had reached before this journal began."""

    tokens: int = 0
    compute: int = 0


def reserve(transaction: Transaction, spend: Spend, per_day: int) -> None:
    """Count a request with its maxFee. Raises SPEND_CAP when the day's cap (wei) does not hold it."""
    left = max(0, per_day - spent_since(transaction, spend.at - DAY_S))
    if spend.amount > left:
        raise OpenLoraError(
            ErrorCode.SPEND_CAP,
            f"this request may cost {spend.amount} wei; of gateway.spend_per_day {left} wei are left",
        )
    transaction.write(
        "spend.reserve",
        f"INSERT INTO spends ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        spend.request_digest, spend.node, spend.signer, spend.pipeline, spend.at, spend.state, wei(spend.amount),
        wei(spend.given), spend.model, integer(spend.prompt_tokens, "prompt tokens"), spend.quote, spend.preimage,
        int(spend.charged), spend.received, spend.note,
    )  # fmt: skip
    _add(transaction, spend.at, spend.amount)


def paid(transaction: Transaction, request_digest: bytes, fee: int, *, charged: bool) -> None:
    """The request's receipt is kept: it cost `fee`."""
    _replace(transaction, request_digest, fee)
    transaction.write(
        "spend.paid",
        "UPDATE spends SET state = 'paid', amount = ?, charged = ?, note = NULL WHERE request_digest = ?",
        wei(fee), int(charged), request_digest,
    )  # fmt: skip


def give(transaction: Transaction, request_digest: bytes, given: int) -> None:
    """A voucher for an open request is about to leave: `given` wei beyond what the node held before the request."""
    transaction.write(
        "spend.give", "UPDATE spends SET given = ? WHERE request_digest = ?", wei(min(given, MAX_WEI)), request_digest
    )


def lost(transaction: Transaction, request_digest: bytes, note: str, received: bytes | None = None) -> int:
    """No receipt came: what its vouchers gave is the most that the node can take. Returns that, in wei."""
    row = transaction.one(
        "SELECT min(given, amount) FROM spends WHERE request_digest = ? AND state = 'open'", request_digest
    )
    if row is not None:
        _replace(transaction, request_digest, number(row[0]))
    transaction.write(
        "spend.lost",
        "UPDATE spends SET state = 'lost', amount = min(given, amount), note = ?, received = ?"
        " WHERE request_digest = ? AND state = 'open'",
        note[:500], received, request_digest,
    )  # fmt: skip
    row = transaction.one("SELECT amount FROM spends WHERE request_digest = ?", request_digest)
    return 0 if row is None else number(row[0])


def annotate(transaction: Transaction, request_digest: bytes, note: str) -> None:
    """Say what became of it, for people."""
    transaction.write("spend.note", "UPDATE spends SET note = ? WHERE request_digest = ?", note[:500], request_digest)


def spent_since(transaction: Transaction, after: int) -> int:
    """What all requests reserved after `after` (unix seconds) count, in wei; a few of up to five minutes before too."""
    _fill(transaction)
    first = (after + 1) // SLOT_S
    return sum(number(row[0]) for row in transaction.all("SELECT amount FROM spent_slots WHERE slot >= ?", first))


def _fill(transaction: Transaction) -> None:
    """Count what a version before this table wrote. Once."""
    if transaction.one("SELECT 1 FROM spent_slots WHERE slot = ?", FILLED):
        return
    sums: dict[int, int] = {}
    for at, amount in transaction.all("SELECT at, amount FROM spends"):
        sums[at // SLOT_S] = sums.get(at // SLOT_S, 0) + number(amount)
    for slot, total in (*sums.items(), (FILLED, 0)):
        transaction.write(
            "spend.slots",
            "INSERT INTO spent_slots (slot, amount) VALUES (?, ?) ON CONFLICT (slot) DO UPDATE SET"
            " amount = excluded.amount",
            slot,
            wide(total),
        )


def _replace(transaction: Transaction, request_digest: bytes, amount: int) -> None:
    """A request counts another amount from now on."""
    row = transaction.one("SELECT at, amount FROM spends WHERE request_digest = ?", request_digest)
    if row is not None:
        _add(transaction, row[0], amount - number(row[1]))


def _add(transaction: Transaction, at: int, difference: int) -> None:
    if not transaction.one("SELECT 1 FROM spent_slots WHERE slot = ?", FILLED):
        return  # the first sum counts it
    row = transaction.one("SELECT amount FROM spent_slots WHERE slot = ?", at // SLOT_S)
    total = difference + (0 if row is None else number(row[0]))
    transaction.write(
        "spend.slot",
        "INSERT INTO spent_slots (slot, amount) VALUES (?, ?) ON CONFLICT (slot) DO UPDATE SET"
        " amount = excluded.amount",
        at // SLOT_S,
        wide(max(0, total)),
    )


def find(transaction: Transaction, request_digest: bytes) -> Spend | None:
    """One request's row."""
    row = transaction.one(f"{_SPENDS} WHERE request_digest = ?", request_digest)
    return None if row is None else _spend(row)


def listed(transaction: Transaction, after: int, limit: int = MAX_LISTED) -> list[Spend]:
    """The newest requests reserved after `after`, newest first."""
    rows = transaction.all(f"{_SPENDS} WHERE at > ? ORDER BY at DESC LIMIT ?", after, min(limit, MAX_LISTED))
    return [_spend(row) for row in rows]


def unsettled(transaction: Transaction, node: bytes | None = None, limit: int = MAX_LISTED) -> list[Spend]:
    """Requests without a kept receipt, of one node or of all, newest first."""
    if node is None:
        rows = transaction.all(f"{_SPENDS} WHERE state <> 'paid' ORDER BY at DESC LIMIT ?", limit)
    else:
        rows = transaction.all(f"{_SPENDS} WHERE node = ? AND state <> 'paid' ORDER BY at DESC LIMIT ?", node, limit)
    return [_spend(row) for row in rows]


def newest_quote(transaction: Transaction, node: bytes, pipeline: bytes) -> tuple[bytes, bytes] | None:
    """The newest (quote, preimage) that a request of this node and pipeline was signed for."""
    row: tuple[bytes, bytes] | None = transaction.one(
        "SELECT quote, preimage FROM spends WHERE node = ? AND pipeline = ? ORDER BY at DESC LIMIT 1", node, pipeline
    )
    return row


def charge_is_paid(transaction: Transaction, node: bytes, signer: bytes, pipeline: bytes) -> bool:
    """Whether some receipt of the ledger held the settlement charge."""
    row = transaction.one(
        "SELECT 1 FROM spends WHERE node = ? AND signer = ? AND pipeline = ? AND charged = 1 LIMIT 1",
        node, signer, pipeline,
    )  # fmt: skip
    return row is not None


def baseline(transaction: Transaction, node: bytes, signer: bytes, pipeline: bytes) -> Baseline:
    """Where the ledger stood before this journal began; zero where the journal is whole."""
    row = transaction.one(
        "SELECT tokens, compute FROM baselines WHERE node = ? AND signer = ? AND pipeline = ?", node, signer, pipeline
    )
    return Baseline() if row is None else Baseline(row[0], number(row[1]))


def set_baseline(transaction: Transaction, node: bytes, signer: bytes, pipeline: bytes, start: Baseline) -> None:
    """Keep where a ledger goes on. Only for a ledger without receipts."""
    transaction.write(
        "spend.baseline",
        "INSERT INTO baselines (node, signer, pipeline, tokens, compute) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET tokens = excluded.tokens, compute = excluded.compute",
        node, signer, pipeline, integer(start.tokens, "tokens"), wei(start.compute),
    )  # fmt: skip


def _spend(row: tuple[Any, ...]) -> Spend:
    (
        digest,
        node,
        signer,
        pipeline,
        at,
        state,
        amount,
        given,
        model,
        prompt,
        quote,
        preimage,
        charged,
        received,
        note,
    ) = row
    return Spend(
        request_digest=digest,
        node=node,
        signer=signer,
        pipeline=pipeline,
        at=at,
        amount=number(amount),
        given=number(given),
        model=model,
        prompt_tokens=prompt,
        quote=quote,
        preimage=preimage,
        state=SpendState(state),
        charged=bool(charged),
        received=received,
        note=note,
    )
