"""Decides datasets' pools on chain: looks at each, and posts, activates or lapses as `crediting` says.

The chain is the truth: what is in force and what is pending is read from it each time. The journal adds what the chain
does not keep: the table behind a root, and the periods that went to static shares.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from openlora_chain.bindings import ActiveCredits, Calldata, CreditPool, PendingCredits

from ..chainview import ChainParts
from ..journal import Journal
from ..journal.database import Transaction
from ..journal.outbox import submit_intent
from ..protocol.errors import OpenLoraError
from ..protocol.ids import format_artifact_id
from . import credit_rows, rows
from .chores import Sending
from .credit_rows import Decided, Posted
from .crediting import (
    ACTIVATE_GAS,
    LAPSE_GAS,
    POST_GAS,
    Activate,
    Decision,
    Epoch,
    Pool,
    Post,
    Rows,
    Wait,
    decide,
)
from .credits import CreditTable
from .leaves import LeavesLike
from .policy import TRANSFER_MARGIN, Rules
from .rows import subject_of
from .royalties import BPS

KIND = "credits"
LOOK_BACK_S = 7 * 86_400
"""Beyond the window for posts: receipts of older epochs were decided, or lapsed, or are not redeemed yet."""

_log = logging.getLogger(__name__)


class SumsLike(Protocol):
    """One dataset over one epoch."""

    @property
    def royalties(self) -> int: ...  # noqa: D102
    def rows(self) -> Rows: ...  # noqa: D102


class PeriodsLike(Protocol):
    """What receipts come to; `attribution.Periods` is one. Called from a thread: may block on the disk."""

    def since(self, first: int, now: int) -> Sequence[tuple[int, Mapping[bytes, SumsLike]]]:
        """(epoch, sums by dataset) of closed epochs with receipts from `first` on, ascending."""
        ...

    def newest_closed(self, now: int) -> int:
        """The newest epoch to which no receipt can be added any more."""
        ...

    def epoch_at(self, time: int) -> int:
        """The epoch that a unix second lies in."""
        ...


class Decisions:
    """The pools of one node."""

    def __init__(
        self,
        journal: Journal,
        parts: ChainParts,
        sending: Sending,
        rules: Rules,
        periods: PeriodsLike,
        leaves: LeavesLike,
    ) -> None:
        self._journal = journal
        self._parts = parts
        self._sending = sending
        self._rules = rules
        self._periods = periods
        self._leaves = leaves
        self._window: int | None = None

    async def round(self, gas_price: int, now: int) -> int:
        """Queue what is to be done and worth its gas; at a price of 0 everything is. How many transactions."""
        if self._window is None:
            self._window = await self._parts.credits.post_window()
        first = max(0, self._periods.epoch_at(now - self._window - LOOK_BACK_S))
        epochs = await asyncio.to_thread(self._periods.since, first, now)
        node = self._sending.node
        block = (await self._parts.rpc.head()).number
        noted = await self._journal.transact(lambda tx: credit_rows.datasets(tx, node))
        queued = 0
        for dataset in sorted({*noted, *(dataset for _, sums in epochs for dataset in sums)}):
            queued += await self._look_after(dataset, epochs, first, block, gas_price, now)
        return queued

    async def _look_after(
        self,
        dataset: bytes,
        epochs: Iterable[tuple[int, Mapping[bytes, SumsLike]]],
        first: int,
        block: int,
        gas_price: int,
        now: int,
    ) -> int:
        """One dataset, all of it as of one block: a decision between two reads would look like a pool that lapsed."""
        node, by_use = self._sending.node, self._parts.credits
        pool = await self._parts.settlement.credit_pool(node, dataset, block)
        if not pool.accrued:
            return 0
        active, pending = await by_use.active_of(node, dataset, block), await by_use.pending_of(node, dataset, block)
        state = await self._note(dataset, pool, active, now)
        tables = await self._journal.transact(lambda tx: credit_rows.posts(tx, node, dataset))
        before = _table_of(active, tables)
        terms = await self._parts.view.terms(dataset)
        waiting = [
            Epoch(number, sums[dataset].royalties * terms.credits_bps // BPS, sums[dataset].rows())
            for number, sums in epochs
            if number > state.epoch and dataset in sums
        ]
        seen = Pool(
            pool.accrued,
            pool.settled,
            pool.waiting_since,
            active.must_reach,
            None if pending is None else pending.activates_at,
            self._periods.newest_closed(now) >= self._periods.epoch_at(pool.waiting_since),
        )
        assert self._window is not None
        decision = decide(seen, before or (), waiting, self._window, now)
        if before is None and isinstance(decision, Post):
            told = "credits of %s: the table in force came from another journal; nothing can continue it"
            _log.warning(told, format_artifact_id(dataset))
            return 0
        left = pool.accrued - pool.settled
        if not self._is_worth(decision, left, gas_price):
            return 0
        if isinstance(decision, Post):
            return await self._post(dataset, decision, active, max(state.epoch, first - 1), left, now)
        await self._let_go(tables, active, pending)
        if isinstance(decision, Activate):
            return await self._queue(dataset, by_use.activate(node, dataset), now)
        lapsed = Decided(pool.accrued, self._periods.newest_closed(now))
        return await self._queue(dataset, by_use.lapse(node, dataset), now, lapsed=lapsed)

    async def _note(self, dataset: bytes, pool: CreditPool, active: ActiveCredits, now: int) -> Decided:
        """How far the dataset is decided. A pool that was settled without a newer epoch on chain has lapsed."""
        node = self._sending.node
        closed = self._periods.newest_closed(now)

        def note(tx: Transaction) -> Decided:
            known = credit_rows.decided(tx, node, dataset)
            epoch = max(known.epoch, active.epoch or -1)
            if pool.settled > known.settled and epoch == known.epoch:
                epoch = closed
            state = Decided(max(pool.settled, known.settled), epoch)
            if state != known:
                credit_rows.note_decided(tx, node, dataset, state)
            return state

        return await self._journal.transact(note)

    def _is_worth(self, decision: Decision, left: int, gas_price: int) -> bool:
        match decision:
            case Wait():
                return False
            case Activate():
                return True  # the posting was worth it, and both were counted then
            case Post():
                gas = POST_GAS + ACTIVATE_GAS
            case _:
                gas = LAPSE_GAS
        return self._rules.is_worth(left, TRANSFER_MARGIN * gas, gas_price)

    async def _post(
        self, dataset: bytes, decision: Post, active: ActiveCredits, after: int, left: int, now: int
    ) -> int:
        node = self._sending.node
        table = CreditTable(decision.rows)
        try:
            leaves = await self._leaves.keep(node, dataset, decision.epoch, table)
        except OpenLoraError as error:
            # A table that nobody can fetch is vetoed: post none, and let the rest of settlement go on.
            _log.warning("credits of %s: the table cannot be kept: %s", format_artifact_id(dataset), error.message)
            return 0
        post = Posted(node, dataset, decision.epoch, table, leaves, active.root, after, left)
        call = self._parts.credits.post(
            node, dataset, decision.epoch, table.root, leaves, decision.total, decision.through
        )
        told = "credits of %s: posting %d wei for %d contributors through epoch %d"
        _log.info(told, format_artifact_id(dataset), decision.total, len(decision.rows), decision.epoch)
        return await self._queue(dataset, call, now, post)

    async def _let_go(self, tables: Iterable[Posted], active: ActiveCredits, pending: PendingCredits | None) -> None:
        """Tables that nobody claims from any more need not be kept for others."""
        kept = {active.root, *(() if pending is None else (pending.root,))}
        for post in tables:
            if post.table.root not in kept:
                await self._leaves.forget(post.leaves)

    async def _queue(
        self,
        dataset: bytes,
        call: Calldata,
        now: int,
        post: Posted | None = None,
        lapsed: Decided | None = None,
    ) -> int:
        """Queue a call unless another of this dataset is under way, in one transaction with what the chain forgets."""
        sender, chain_id = self._sending.sender, self._sending.chain_id
        intent = self._sending.intent(KIND, dataset + subject_of(call.data, now), call)

        def write(tx: Transaction) -> int:
            if any(kind == KIND and subject[:32] == dataset for kind, subject in rows.under_way(tx, sender, chain_id)):
                return 0
            if post is None:
                submit_intent(tx, intent, now)
                if lapsed is not None:
                    credit_rows.note_decided(tx, self._sending.node, dataset, lapsed)
            else:
                credit_rows.queue_post(tx, post, intent, now)
            return 1

        return await self._journal.transact(write)


def _table_of(active: ActiveCredits, tables: Iterable[Posted]) -> Rows | None:
    """The table in force: empty before the first, None if this journal does not have it."""
    if not any(active.root):
        return ()
    return next((post.table.credits for post in tables if post.table.root == active.root), None)
