"""Keeps the escrows of the nodes in use funded: how much to deposit is decided purely, deposits go through the outbox.

Never more than `escrow_per_node` beyond what is owed already, never to more than `top_nodes` nodes, and all deposits of
any 24 hours within the day's cap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from openlora_chain.errors import ChainError
from openlora_chain.store import Intent, IntentState, NewIntent

from ..journal import EscrowSnapshot, Journal, Ledger, LedgerKey, spending
from ..journal.books import LEDGER_COLUMNS, ledger_of
from ..journal.database import Transaction
from ..journal.outbox import find_intent, submit_intent
from ..journal.vouchers import record_redeemed
from ..protocol.errors import ErrorCode, OpenLoraError
from .offers import reopen_offer
from .ports import Chain

DEPOSIT = "escrow-deposit"
FUNDING_TIMEOUT_S = 90.0
LOOK_S = 0.5
SEEN_AFTER_S = 30
MAX_LEDGERS = 1_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EscrowRules:
    """Bounds, in wei and in nodes."""

    top_nodes: int
    per_node: int
    per_day: int


@dataclass(frozen=True)
class Standing:
    """What an escrow holds and what is owed out of it, in wei."""

    balance: int
    thawing: int
    owed: int
    """Given by vouchers or receipts and not redeemed yet."""

    @property
    def free(self) -> int:
        """What new requests may use."""
        return max(0, self.balance - self.thawing - self.owed)


def deposit_needed(standing: Standing, rules: EscrowRules, deposited_today: int, least: int = 0) -> int:
    """Wei to deposit now; 0 while at least half of the target and `least` are free, or the day's cap is reached."""
    if standing.free >= max(rules.per_node // 2, least):
        return 0
    return max(0, min(rules.per_node - standing.free, rules.per_day - deposited_today))


class Sender(Protocol):
    """What is used of the outbox."""

    def wake(self) -> None:
        """Look at the store now."""
        ...

    @property
    def blocked(self) -> str | None:
        """What holds the transactions up."""
        ...


Deposit = Callable[[bytes, int], NewIntent]
"""(node, wei) → the transaction that deposits them; its subject is replaced."""


class Escrows:
    """The escrows of one payer."""

    def __init__(
        self,
        journal: Journal,
        chain: Chain,
        payer: bytes,
        rules: EscrowRules,
        deposit: Deposit,
        sender: Sender,
        clock: Callable[[], int],
        *,
        look_s: float = LOOK_S,
        timeout_s: float = FUNDING_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._journal = journal
        self._chain = chain
        self._payer = payer
        self._rules = rules
        self._deposit = deposit
        self._sender = sender
        self._clock = clock
        self._look_s = look_s
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._seen: dict[bytes, int] = {}
        self._funding: dict[bytes, asyncio.Lock] = {}
        self.funded: set[bytes] = set()
        """Nodes that this process has seen with money in their escrow."""

    def __repr__(self) -> str:
        return f"Escrows({len(self.funded)} of {self._rules.top_nodes} nodes)"

    async def snapshot(self, node: bytes) -> EscrowSnapshot:
        """The escrow as the journal's admission takes it, what was redeemed noted first. Raises CHAIN_FAILED."""
        state = await self._chain.escrow(self._payer, node)
        if self._seen.get(node) != state.balance:
            await self._note_redeemed(node)
            state = await self._chain.escrow(self._payer, node)
            self._seen[node] = state.balance
        if state.balance:
            self.funded.add(node)
        else:
            self.funded.discard(node)
        return EscrowSnapshot(state.balance, state.thawing)

    async def standing(self, node: bytes) -> Standing:
        """What the escrow holds and owes."""
        snapshot = await self.snapshot(node)
        ledgers = await self._ledgers(node)
        owed = sum(max(0, max(ledger.fee, ledger.voucher_value) - ledger.redeemed) for ledger in ledgers)
        return Standing(snapshot.balance, snapshot.thawing, owed)

    async def is_ready(self, node: bytes, fee: int) -> bool:
        """Whether the escrow pays for a request of `fee` wei now."""
        return (await self.standing(node)).free >= fee

    def may_fund(self, node: bytes) -> bool:
        """Whether the node is, or may become, one of those kept funded."""
        return node in self.funded or len(self.funded | set(self._funding)) < self._rules.top_nodes

    async def fund(self, node: bytes, fee: int) -> None:
        """Deposit what is missing and wait until the chain shows it.

        Raises ESCROW_TOO_LOW with what is in the way: the caps, the key's own balance, a chain that does not move.
        """
        if not self.may_fund(node):
            raise _short(f"{self._rules.top_nodes} nodes are funded (gateway.top_nodes) and this is none of them")
        lock = self._funding.setdefault(node, asyncio.Lock())
        try:
            async with lock:
                if await self.is_ready(node, fee):
                    return
                await self.top_up(node, fee)
                await self._wait(node, fee)
        finally:
            if not lock.locked():
                self._funding.pop(node, None)

    async def top_up(self, node: bytes, least: int = 0) -> Intent | None:
        """Queue a deposit if one is due and none is under way. Returns at once; None when nothing is due."""
        standing = await self.standing(node)
        if not deposit_needed(standing, self._rules, 0, least):
            return None
        try:
            intent = await self._journal.transact(lambda tx: self._queue(tx, node, standing, least))
        except ChainError as error:
            raise _short(error.message) from None
        if intent is not None:
            logger.info("depositing %d wei to the escrow with node %s", intent.request.value, node.hex()[:8])
            self._sender.wake()
        return intent

    def _queue(self, tx: Transaction, node: bytes, standing: Standing, least: int) -> Intent | None:
        rows = tx.all(
            "SELECT state, updated_at FROM intents WHERE kind = ? AND substr(subject, 1, 32) = ?", DEPOSIT, node
        )
        now = self._clock()
        if any(_under_way(IntentState(state), now - updated_at) for state, updated_at in rows):
            return None
        wei = deposit_needed(standing, self._rules, deposited_since(tx, now - spending.DAY_S), least)
        if not wei:
            return None
        wanted = self._deposit(node, wei)
        subject = node + len(rows).to_bytes(8, "big")
        new = NewIntent(
            DEPOSIT, subject, wanted.chain_id, wanted.sender, wanted.to, wanted.data, wanted.value, wanted.gas_limit
        )
        return submit_intent(tx, new, now)

    async def _wait(self, node: bytes, fee: int) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not await self.is_ready(node, fee):
                    newest = await self._journal.transact(lambda tx: newest_deposit(tx, node))
                    if newest is None:
                        raise _short(
                            f"gateway.escrow_per_node ({self._rules.per_node} wei) and what is left of"
                            " gateway.spend_per_day for deposits do not cover it"
                        )
                    if newest.state is IntentState.FAILED:
                        raise _short(f"the deposit was refused: {newest.note}")
                    await self._sleep(self._look_s)
        except TimeoutError:
            reason = self._sender.blocked or "the chain has not taken the deposit yet"
            raise _short(reason, retry_after_ms=10_000) from None

    async def _note_redeemed(self, node: bytes) -> None:
        """What the chain has paid out no longer stands against the escrow."""
        for ledger in await self._ledgers(node):
            key = ledger.key
            tokens, compute, debt = await self._chain.redeemed(key.payer, key.signer, key.node, key.pipeline)
            if not tokens and not compute:
                continue
            await self._journal.transact(
                lambda tx, key=key, tokens=tokens, compute=compute, debt=debt: _record(  # type: ignore[misc]
                    tx, self._journal, key, tokens, compute, debt
                )
            )

    async def _ledgers(self, node: bytes) -> list[Ledger]:
        def read(tx: Transaction) -> list[Ledger]:
            sql = f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE payer = ? AND node = ? LIMIT ?"  # noqa: S608 - constants
            return [ledger_of(row) for row in tx.all(sql, self._payer, node, MAX_LEDGERS)]

        return await self._journal.transact(read)


def _under_way(state: IntentState, age_s: int) -> bool:
    """Whether a deposit may not show in the escrow yet. One that was mined a while ago does, final or not."""
    return state.is_open and not (state is IntentState.MINED and age_s > SEEN_AFTER_S)


def deposited_since(tx: Transaction, after: int) -> int:
    """Wei of all deposits wanted after `after` (unix seconds) that were not refused or withdrawn."""
    rows = tx.all(
        "SELECT value FROM intents WHERE kind = ? AND created_at > ? AND state NOT IN ('failed', 'cancelled')",
        DEPOSIT, after,
    )  # fmt: skip
    return sum(int.from_bytes(row[0], "big") for row in rows)


def newest_deposit(tx: Transaction, node: bytes) -> Intent | None:
    """The newest deposit to a node's escrow."""
    row = tx.one(
        "SELECT id FROM intents WHERE kind = ? AND substr(subject, 1, 32) = ? ORDER BY seq DESC LIMIT 1", DEPOSIT, node
    )
    return None if row is None else find_intent(tx, row[0])


def _record(tx: Transaction, journal: Journal, key: LedgerKey, tokens: int, compute: int, debt: int) -> None:
    stored = spending.newest_quote(tx, key.node, key.pipeline)
    if stored is None:
        return
    schedule = reopen_offer(*stored, journal.binding.domain).schedule
    record_redeemed(tx, key, max(0, compute + schedule.royalties(tokens) - debt))


def _short(reason: str, retry_after_ms: int | None = None) -> OpenLoraError:
    return OpenLoraError(
        ErrorCode.ESCROW_TOO_LOW, f"the escrow with this node is too low: {reason}", retry_after_ms=retry_after_ms
    )
