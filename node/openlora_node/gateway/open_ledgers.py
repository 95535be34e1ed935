"""The ledgers in use: one book each while requests run in them, one change at a time, one request at the node's door.

A book is read from the journal when nothing is open in it, and forgotten when nobody uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..journal import Journal, LedgerKey, spending
from ..journal.books import Books
from ..journal.database import Transaction
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pricing import TOKENS_PER_RATE, RoyaltySchedule
from .ledger_book import Amounts, LedgerBook
from .ledger_rows import amounts_of, charge_due

DOOR_WAIT_S = 30.0
"""Longest wait until the node has taken or refused another request of the ledger."""
MAX_NODE_HOLDS = 10_000


@dataclass
class OpenLedger:
    """A ledger in use: its book, who may change it now, and an event that ends with the next change.

    `door` is held from signing a request until the node took or refused it: vouchers that are signed meanwhile could
    neither count it, for the node refuses what runs ahead, nor leave it out, for vouchers only grow.
    """

    book: LedgerBook
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    at_door: bytes | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    users: int = 0

    def tell(self) -> None:
        """Wake whoever waits for the book to grow."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class OpenLedgers:
    """All ledgers in use, by key."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: dict[LedgerKey, OpenLedger] = {}
        self._node_holds: dict[LedgerKey, Amounts] = {}
        """What nodes were found to hold, where that was less than the journal's newest voucher."""

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, key: LedgerKey) -> OpenLedger:
        return self._open[key]

    def node_holds(self, key: LedgerKey, amounts: Amounts) -> None:
        """A node showed its newest voucher of ours: the next one builds on that, not on one that it refused."""
        if len(self._node_holds) >= MAX_NODE_HOLDS:
            self._node_holds.clear()
        self._node_holds[key] = amounts

    def signed(self, key: LedgerKey, amounts: Amounts) -> None:
        """A voucher of these amounts is about to reach the node."""
        if key in self._node_holds:
            self._node_holds[key] = self._node_holds[key].joined(amounts)

    @asynccontextmanager
    async def book(self, key: LedgerKey) -> AsyncIterator[LedgerBook]:
        """The ledger's book, read anew from the journal while nothing is open in it; one user at a time."""
        held = self._open[key]
        async with held.lock:
            if not held.book.requests:
                await self.refresh(key, held.book)
            yield held.book

    def enter(self, key: LedgerKey, schedule: RoyaltySchedule) -> OpenLedger:
        """The ledger is in use until `_leave`."""
        held = self._open.setdefault(key, OpenLedger(LedgerBook(schedule)))
        held.users += 1
        return held

    def leave(self, key: LedgerKey) -> None:
        """One user less."""
        held = self._open[key]
        held.users -= 1
        held.tell()
        if not held.users:
            del self._open[key]

    async def refresh(self, key: LedgerKey, book: LedgerBook) -> None:
        """Read the book anew."""
        await self._journal.transact(lambda tx: self.load(tx, key, book))

    def load(self, tx: Transaction, key: LedgerKey, book: LedgerBook) -> None:
        """What is on disk of a ledger. In the writer's thread; the book's lock is held."""
        ledger = Books(tx).ledger(key)
        start = spending.baseline(tx, key.node, key.signer, key.pipeline)
        book.committed = Amounts(start.tokens + ledger.tally.tokens, start.compute + ledger.tally.compute)
        book.remainder_micro_wei = ledger.tally.compute_micro_wei % TOKENS_PER_RATE
        newest = ledger.newest_voucher
        book.voucher = self._node_holds.get(key, amounts_of(newest.value) if newest else Amounts())
        book.charge_due = charge_due(tx, key, None)

    async def to_door(self, held: OpenLedger) -> None:
        """Wait until nobody stands there, then stand there. Raises BUSY."""
        try:
            async with asyncio.timeout(DOOR_WAIT_S):
                await held.door.acquire()
        except TimeoutError:
            raise OpenLoraError(
                ErrorCode.BUSY, "another request stands at this node's door", retry_after_ms=1_000
            ) from None

    def from_door(self, held: OpenLedger, digest: bytes) -> None:
        """The node has decided about this request, or nobody waits for that any more."""
        if held.at_door == digest:
            held.at_door = None
            held.door.release()

    @asynccontextmanager
    async def shut_door(self, key: LedgerKey, own: bytes) -> AsyncIterator[None]:
        """While a voucher is signed for the request `own`, nobody else's may be undecided."""
        held = self._open[key]
        if held.at_door == own:
            yield
            return
        async with held.door:
            yield
