"""What our transactions cost and brought, from their receipts into the journal; and the same as totals and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from openlora_chain import events
from openlora_chain.compiled import error_table
from openlora_chain.events import EventTable
from openlora_chain.rpc import TxReceipt
from openlora_chain.store import Intent

from ..chainview import ChainParts
from ..journal import Journal
from ..journal.books import number
from ..journal.database import Transaction, connect, storage_errors
from ..journal.schema import bundled, check_version
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes
from . import rows
from .rows import Cost, Earned

INTENTS_A_ROUND = 32
PASSING_SKIPS = frozenset({"StaleVoucher"})
"""A voucher left out for this reason was redeemed by somebody else before."""
COLUMNS = (
    "time",
    "kind",
    "transaction",
    "payer",
    "pipeline",
    "operator_wei",
    "protocol_wei",
    "royalties_wei",
    "gas_wei",
)


@dataclass(frozen=True)
class Totals:
    """Earnings against gas, in wei. `redeemed` is the operator's part of what vouchers brought."""

    redeemed: int = 0
    claimed: int = 0
    protocol: int = 0
    royalties: int = 0
    gas_wei: int = 0
    transactions: int = 0
    last_claim: int = 0
    """Unix second of the newest claim's block; 0 before the first."""

    @property
    def net(self) -> int:
        """What the operator's part leaves after gas; negative while gas cost more."""
        return self.redeemed - self.gas_wei


class Accounting:
    """One node's books of transactions."""

    def __init__(self, journal: Journal, parts: ChainParts, node: bytes, sender: bytes) -> None:
        self._journal = journal
        self._parts = parts
        self._node = node
        self._sender = sender
        self._table = EventTable(
            parts.deployment,
            (events.VoucherRedeemed, events.DebtCollected, events.VoucherSkipped, events.OperatorPaid),
        )

    async def write_down(self) -> int:
        """Account for closed intents that are not yet; returns for how many. Raises ChainError."""
        chain_id = self._parts.deployment.chain_id
        intents = await self._journal.transact(lambda tx: rows.unaccounted(tx, self._sender, chain_id, INTENTS_A_ROUND))
        done = 0
        for intent in intents:
            done += await self._account(intent)
        return done

    async def _account(self, intent: Intent) -> bool:
        assert intent.inclusion is not None
        receipt = await self._parts.rpc.receipt(intent.inclusion.tx_hash)
        if receipt is None:
            # This endpoint does not have it, or has it no more: another round, perhaps another endpoint.
            return False
        block = await self._parts.rpc.block(receipt.block.number)
        at = block.timestamp if block is not None else intent.updated_at
        cost = Cost(
            tx_hash=receipt.tx_hash,
            kind=intent.request.kind,
            at=at,
            gas=receipt.gas_used,
            wei=receipt.gas_used * receipt.gas_price,
            succeeded=receipt.succeeded,
        )
        earned, refusals = self._read(receipt, at)

        def write(transaction: Transaction) -> None:
            rows.write_account(transaction, cost, earned)
            for position, reason in refusals:
                rows.note_refusal(transaction, intent.id, position, reason)

        await self._journal.transact(write)
        return True

    def _read(self, receipt: TxReceipt, at: int) -> tuple[list[Earned], list[tuple[int, str]]]:
        """What a transaction's events say: money, and vouchers that were left out."""
        earned: list[Earned] = []
        refusals: list[tuple[int, str]] = []
        for log in receipt.logs:
            event = self._table.decode(log)
            match event:
                case events.VoucherSkipped():
                    reason = error_table().explain(event.reason).name
                    if reason not in PASSING_SKIPS:
                        refusals.append((event.index, reason))
                case events.VoucherRedeemed() | events.DebtCollected() if event.node == self._node:
                    kind = "redeemed" if isinstance(event, events.VoucherRedeemed) else "collected"
                    amounts = event.operator_paid, event.protocol_paid, event.royalties_paid
                    earned.append(Earned(receipt.tx_hash, log.index, at, kind, event.payer, event.pipeline, *amounts))
                case events.OperatorPaid() if event.node == self._node:
                    earned.append(Earned(receipt.tx_hash, log.index, at, "claimed", None, None, event.amount, 0, 0))
                case _:
                    pass
        return earned, refusals


def totals_of(transaction: Transaction) -> Totals:
    """Sums over the whole journal."""
    sums = {"redeemed": 0, "collected": 0, "claimed": 0}
    protocol = royalties = 0
    for kind, operator, to_protocol, to_artifacts in transaction.all(
        "SELECT kind, operator, protocol, royalties FROM earnings"
    ):
        sums[kind] += number(operator)
        protocol += number(to_protocol)
        royalties += number(to_artifacts)
    costs = transaction.all("SELECT wei FROM chain_costs")
    claimed = transaction.one("SELECT max(at) FROM earnings WHERE kind = 'claimed'")
    return Totals(
        redeemed=sums["redeemed"] + sums["collected"],
        claimed=sums["claimed"],
        protocol=protocol,
        royalties=royalties,
        gas_wei=sum(number(row[0]) for row in costs),
        transactions=len(costs),
        last_claim=0 if claimed is None or claimed[0] is None else int(claimed[0]),
    )


def read_totals(path: Path) -> Totals:
    """Sums of a journal that may be in use. Raises OpenLoraError NOT_FOUND, STORAGE_*."""
    with _reading(path) as transaction:
        return totals_of(transaction)


def earnings_rows(path: Path) -> list[tuple[str, ...]]:
    """The journal's earnings and costs by time, as `COLUMNS`. Raises OpenLoraError NOT_FOUND, STORAGE_*."""
    with _reading(path) as transaction:
        earned = [
            (at, kind, tx_hash, payer, pipeline, number(operator), number(protocol), number(royalties), 0)
            for at, kind, tx_hash, payer, pipeline, operator, protocol, royalties in transaction.all(
                "SELECT at, kind, tx_hash, payer, pipeline, operator, protocol, royalties FROM earnings"
            )
        ]
        costs = [
            (at, f"gas:{kind}", tx_hash, None, None, 0, 0, 0, number(wei))
            for at, kind, tx_hash, wei in transaction.all("SELECT at, kind, tx_hash, wei FROM chain_costs")
        ]
    return [_printed(row) for row in sorted(earned + costs, key=lambda row: (row[0], row[2], row[1]))]


def write_csv(target: TextIO, columns: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    """Comma-separated values with a header, as RFC 4180; amounts are whole wei: have spreadsheets read text."""
    writer = csv.writer(target, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(lines)


@contextmanager
def _reading(path: Path) -> Iterator[Transaction]:
    if not path.is_file():
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"there is no journal named {path.name} here")
    with storage_errors(), closing(connect(path, "ro")) as connection:
        version = bundled()[-1].version
        if check_version(connection, version) < version:
            raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "the journal is of an older version: start the node once")
        yield Transaction(connection)


def _printed(row: tuple[int, str, bytes, bytes | None, bytes | None, int, int, int, int]) -> tuple[str, ...]:
    at, kind, tx_hash, payer, pipeline, *amounts = row
    time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    who = format_address(payer) if payer else ""
    what = format_bytes(pipeline) if pipeline else ""
    return time, kind, format_bytes(tx_hash), who, what, *map(str, amounts)
