"""Ledgers and accounts: the rows that say what a payer may still spend and what it owes. Computes no price.

An account sums its ledgers; `Books.save` is the only writer of both, so that the sums cannot drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pricing import MAX_WEI, Tally
from ..protocol.structs import Voucher
from .database import Transaction
from .values import Ledger, LedgerKey

MAX_INTEGER = (1 << 63) - 1
"""The largest integer that SQLite stores: bounds seq and times here, though the protocol allows 2^64 - 1."""

LEDGER_COLUMNS = (
    "payer, node, signer, pipeline, tokens, compute_micro_wei, fee, reserved, voucher, voucher_value, redeemed"
)
OPEN = "state <> 'done'"
"""The condition of the partial index over open requests: SQLite uses the index only where it stands word for word."""
_KEY = "payer = ? AND node = ? AND signer = ? AND pipeline = ?"


def wei(amount: int) -> bytes:
    """An amount as its 16-byte column. Raises OpenLoraError BAD_AMOUNT."""
    if not 0 <= amount <= MAX_WEI:
        raise OpenLoraError(ErrorCode.BAD_AMOUNT)
    return amount.to_bytes(16, "big")


def wide(amount: int) -> bytes:
    """A sum or an amount in micro-wei as its 32-byte column."""
    return amount.to_bytes(32, "big")


def number(column: bytes) -> int:
    """The amount in a column."""
    return int.from_bytes(column, "big")


def integer(value: int, name: str) -> int:
    """`value`, which SQLite can store. Raises OpenLoraError BAD_AMOUNT."""
    if value > MAX_INTEGER:
        raise OpenLoraError(ErrorCode.BAD_AMOUNT, f"{name} is below 2^63")
    return value


@dataclass(frozen=True)
class Account:
    """Sums over a payer's ledgers with one node: see `Ledger.exposure` and `Ledger.owed`."""

    exposure: int = 0
    owed: int = 0


def ledger_of(row: tuple[Any, ...]) -> Ledger:
    """A ledger from its `LEDGER_COLUMNS`."""
    payer, node, signer, pipeline, tokens, micro, fee, reserved, voucher, value, redeemed = row
    newest = None if voucher is None else Signed.unpack(Voucher, voucher).value
    return Ledger(
        key=LedgerKey(payer, node, signer, pipeline),
        tally=Tally(tokens, number(micro)),
        fee=number(fee),
        reserved=number(reserved),
        voucher=voucher,
        voucher_compute=newest.cumulative_compute if newest else 0,
        voucher_value=number(value),
        redeemed=number(redeemed),
    )


class Books:
    """The ledgers and accounts of one open transaction."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def ledger(self, key: LedgerKey) -> Ledger:
        """The ledger under `key`, an empty one if there is none yet."""
        row = self._transaction.one(
            f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE {_KEY}",  # noqa: S608 - constants
            key.payer, key.node, key.signer, key.pipeline,
        )  # fmt: skip
        return Ledger(key) if row is None else ledger_of(row)

    def account(self, payer: bytes, node: bytes) -> Account:
        """The payer's account with the node, an empty one if there is none yet."""
        row = self._transaction.one("SELECT exposure, owed FROM accounts WHERE payer = ? AND node = ?", payer, node)
        return Account() if row is None else Account(number(row[0]), number(row[1]))

    def reserved_ledgers(self) -> list[Ledger]:
        """Every ledger with an open reservation: at most one for each running request."""
        rows = self._transaction.all(
            f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE (payer, node, signer, pipeline) IN"  # noqa: S608 - constants
            f" (SELECT payer, node, signer, pipeline FROM requests WHERE state = 'running' AND {OPEN})"
        )
        return [ledger_of(row) for row in rows]

    def save(self, operation: str, before: Ledger, after: Ledger) -> None:
        """Replace `before`, just read under the same key, by `after`, and move the account along."""
        key = after.key
        self._transaction.write(
            f"{operation}.ledgers",
            f"INSERT INTO ledgers ({LEDGER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
            " ON CONFLICT DO UPDATE SET tokens = excluded.tokens, compute_micro_wei = excluded.compute_micro_wei,"
            " fee = excluded.fee, reserved = excluded.reserved, voucher = excluded.voucher,"
            " voucher_value = excluded.voucher_value, redeemed = excluded.redeemed",
            key.payer, key.node, key.signer, key.pipeline,
            integer(after.tally.tokens, "cumulative tokens"), wide(after.tally.compute_micro_wei),
            wei(after.fee), wei(after.reserved), after.voucher, wei(after.voucher_value), wei(after.redeemed),
        )  # fmt: skip
        exposure, owed = after.exposure - before.exposure, after.owed - before.owed
        if exposure or owed:
            account = self.account(key.payer, key.node)
            self._transaction.write(
                f"{operation}.accounts",
                "INSERT INTO accounts (payer, node, exposure, owed) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET exposure = excluded.exposure, owed = excluded.owed",
                key.payer, key.node, wide(account.exposure + exposure), wide(account.owed + owed),
            )  # fmt: skip
