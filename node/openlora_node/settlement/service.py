"""Turns vouchers into money and receipts into anchors: one pass a minute, and at once when the chain says to hurry.

A pass looks at the journal and at the chain, decides by `policy`, and queues intents in the transaction that read the
vouchers; the outbox sends them. What was paid is read back from contract state, never from an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from openlora_chain.bindings import PipelineTuple, VoucherTuple
from openlora_chain.errors import ChainError
from openlora_chain.outbox import Outbox
from openlora_chain.store import Intent, NewIntent

from ..chainview import ChainEvent, ChainParts, TermsChanged, ThawStarted
from ..config.schema import Settlement as SettlementOptions
from ..journal import Journal
from ..journal.database import Transaction
from ..journal.outbox import submit_intent
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import format_address
from . import rows
from .accounting import Accounting, Totals, totals_of
from .chores import Chores, EpochsLike, Sending, same_call
from .decisions import Decisions
from .looking import Looking, Sighting
from .policy import BATCH_GAS, FIRST_VOUCHER_GAS, Batch, Rules, choose

_log = logging.getLogger(__name__)

ROUND_S = 60.0
RETRY_S = 10.0
HURRY_S = 0.2
"""Events come in swarms: this long after the first the round begins."""
CHORES_S = 600
TYPICAL_GAS = BATCH_GAS + FIRST_VOUCHER_GAS
MAX_PIPELINES = 256
MAX_HURRIED = 1_024
WAITED_OUT = frozenset({ErrorCode.CHAIN_FAILED, ErrorCode.BUSY})


@dataclass(frozen=True)
class SettlementStatus:
    """How settlement stands, for the dashboard and `status`. Amounts in wei, times in unix seconds."""

    due: int = 0
    """What newest vouchers are worth beyond what the chain accepted."""
    due_ledgers: int = 0
    owed: int = 0
    """What channels owe beyond what their escrow held when their vouchers were accepted."""
    refused: int = 0
    """Ledgers whose newest voucher the chain does not take."""
    in_flight: int = 0
    """Transactions under way."""
    operator_balance: int = 0
    """Earned and not claimed."""
    gas_balance: int = 0
    gas_transactions: int = 0
    """How many typical transactions the node key's balance pays for."""
    gas_price: int = 0
    anchored_through: int | None = None
    unbatched: int = 0
    """Receipts whose epoch has no root queued or on chain: those of the running one, and what waits for gas."""
    last_round: int = 0
    totals: Totals = field(default_factory=Totals)


class SettlementService:
    """One node's settlement. `run` is a task beside the outbox's and the view's."""

    def __init__(
        self,
        journal: Journal,
        parts: ChainParts,
        outbox: Outbox,
        node: bytes,
        options: SettlementOptions,
        clock: Callable[[], int],
        epochs: EpochsLike,
        decisions: Decisions | None = None,
    ) -> None:
        self._journal = journal
        self._parts = parts
        self._outbox = outbox
        self._node = node
        self._options = options
        self._clock = clock
        self._rules = Rules(options.redeem_gas_multiple, int(options.redeem_max_age.total_seconds()))
        self._sending = Sending(outbox.address, outbox.chain_id, node)
        self._looking = Looking(journal, parts, node, outbox.confirmations)
        self._accounting = Accounting(journal, parts, node, outbox.address)
        self._epochs = epochs
        self._chores = Chores(parts, self._sending, self._rules, epochs)
        self._decisions = decisions
        self._chores_at: int | None = None
        self._turn = rows.Turn()
        self._hurried: set[bytes] = set()
        self._totals: Totals | None = None
        self._round = asyncio.Lock()
        self._wake = asyncio.Event()
        self._status = SettlementStatus()
        self._health = ServiceHealth("settlement", Level.INITIALIZING, "looking at the chain", clock())
        parts.view.on_event(self._heard)

    def __repr__(self) -> str:
        return f"SettlementService({self._health.level.value}, {self._status.due} wei due)"

    def status(self) -> SettlementStatus:
        """As of the last round."""
        return self._status

    def health(self) -> ServiceHealth:
        """Degraded while the chain does not answer, gas runs low, or something holds the outbox up."""
        return self._health

    def wake(self) -> None:
        """Have a round now."""
        self._wake.set()

    async def run(self) -> None:
        """Rounds until cancelled. Errors of the chain are waited out, those of the journal's disk are raised."""
        while True:
            self._wake.clear()
            pause = ROUND_S
            try:
                await self.tick()
            except (ChainError, OpenLoraError) as error:
                if isinstance(error, OpenLoraError) and error.code not in WAITED_OUT:
                    raise
                pause = RETRY_S
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(HURRY_S)
            except TimeoutError:
                pass

    async def tick(self) -> None:
        """One round. Raises OpenLoraError CHAIN_FAILED and ChainError where the chain does not answer."""
        async with self._round:
            try:
                await self._go_round()
            except (ChainError, OpenLoraError) as error:
                self._set_health(Level.DEGRADED, error.message)
                raise

    async def redeem_now(self) -> int:
        """Redeem all that is due, whatever it is worth. Returns how many transactions were queued."""
        async with self._round:
            sightings = await self._look()
            dues = [sighting.due for sighting in sightings if sighting.due is not None and _may_go(sighting)]
            batches = choose(dues, Rules(0, 0), 0, self._clock())
            return len(await self._queue(batches))

    async def decide_now(self) -> int:
        """Decide every dataset's pool that can be decided, whatever it is worth. How many transactions were queued."""
        async with self._round:
            queued = 0 if self._decisions is None else await self._decisions.round(0, self._clock())
            if queued:
                self._outbox.wake()
            return queued

    async def _go_round(self) -> None:
        now = self._clock()
        head = await self._parts.rpc.head()
        gas_price = head.base_fee + await self._parts.rpc.priority_fee()
        if await self._accounting.write_down() or self._totals is None:
            self._totals = await self._journal.transact(totals_of)
        sightings = await self._look()
        dues = [sighting.due for sighting in sightings if sighting.due is not None and _may_go(sighting)]
        await self._queue(choose(dues, self._rules, gas_price, now))
        debts = [sighting.debt for sighting in sightings if sighting.debt is not None and _may_go(sighting)]
        await self._submit(self._chores.collections(debts, gas_price, now))
        await self._anchor(now)
        if self._chores_at is None or now - self._chores_at >= CHORES_S:
            await self._pay_out(gas_price, now)
            self._chores_at = now
        await self._report(sightings, gas_price, now)

    async def _look(self) -> list[Sighting]:
        turn = replace(self._turn, payers=tuple(self._hurried))
        unpaid, self._turn = await self._journal.transact(lambda tx: rows.unpaid(tx, self._node, self._clock(), turn))
        found = await self._looking.look(unpaid)
        self._hurried.difference_update(turn.payers)
        return found

    async def _queue(self, batches: Sequence[Batch]) -> list[Intent]:
        """One intent a batch, of the vouchers that the journal holds when it is written."""
        queued: list[Intent] = []
        for batch in batches:
            keys = [due.key for due, _ in batch.dues]
            now = self._clock()
            done = await self._journal.transact(
                lambda tx, keys=keys, now=now: rows.queue_redemption(tx, keys, self._encoder(now), now)  # type: ignore[misc]
            )
            if done is not None:
                intent, worth = done
                reasons = ", ".join(sorted({reason.value for _, reason in batch.dues}))
                _log.info("settlement: redeeming %d vouchers worth %d wei (%s)", len(keys), worth, reasons)
                queued.append(intent)
        if queued:
            self._outbox.wake()
        return queued

    def _encoder(self, now: int) -> rows.Encode:
        def encode(pipelines: list[PipelineTuple], vouchers: list[VoucherTuple], signatures: list[bytes]) -> NewIntent:
            call = self._parts.settlement.redeem_many(pipelines, vouchers, signatures)
            return self._sending.intent("redeem", rows.subject_of(call.data, now), call)

        return encode

    async def _anchor(self, now: int) -> None:
        newest = await self._journal.transact(lambda tx: rows.newest_anchor(tx, self._node))
        intents = await self._chores.anchors(newest, now)
        await self._submit(intents)
        if intents:
            self._chores.anchored_through = int.from_bytes(intents[-1].subject[32:40], "big")

    async def _pay_out(self, gas_price: int, now: int) -> None:
        served = await self._journal.transact(lambda tx: rows.pipelines_served(tx, self._node, MAX_PIPELINES))
        wanted = [await self._chores.claim(gas_price, now), await self._chores.harvest(served, gas_price, now)]
        await self._submit([intent for intent in wanted if intent is not None])
        if self._decisions is not None and await self._decisions.round(gas_price, now):
            self._outbox.wake()

    async def _submit(self, intents: Sequence[NewIntent]) -> None:
        """Queue those of which no other is under way that does the same."""
        if not intents:
            return

        def write(transaction: Transaction) -> int:
            sender, chain_id = self._sending.sender, self._sending.chain_id
            open_now = {(kind, same_call(subject)) for kind, subject in rows.under_way(transaction, sender, chain_id)}
            count = 0
            for intent in intents:
                if intent.kind == "anchor" or (intent.kind, same_call(intent.subject)) not in open_now:
                    submit_intent(transaction, intent, self._clock())
                    count += 1
            return count

        if await self._journal.transact(write):
            self._outbox.wake()

    async def _unbatched(self) -> int:
        queued = await self._journal.transact(lambda tx: rows.newest_anchor(tx, self._node))
        through = max((number for number in (queued, self._chores.anchored_through) if number is not None), default=-1)
        first = await asyncio.to_thread(self._epochs.first_seq, through + 1)
        return await self._journal.transact(lambda tx: rows.receipts_from(tx, self._node, first))

    async def _report(self, sightings: Sequence[Sighting], gas_price: int, now: int) -> None:
        balance = await self._parts.rpc.balance(self._outbox.address)
        cost = max(TYPICAL_GAS * gas_price, 1)
        outbox = self._outbox.status
        self._status = SettlementStatus(
            due=sum(sighting.due.value for sighting in sightings if sighting.due is not None),
            due_ledgers=sum(sighting.due is not None for sighting in sightings),
            owed=sum(sighting.debt.owed for sighting in sightings if sighting.debt is not None),
            refused=sum(sighting.unpaid.refused is not None for sighting in sightings),
            in_flight=outbox.queued + outbox.in_flight + outbox.mined,
            operator_balance=await self._parts.settlement.operator_balance(self._node),
            gas_balance=balance,
            gas_transactions=balance // cost,
            gas_price=gas_price,
            anchored_through=self._chores.anchored_through,
            unbatched=await self._unbatched(),
            last_round=now,
            totals=self._totals or Totals(),
        )
        wanted = self._options.low_gas_transactions
        if outbox.blocked is not None:
            self._set_health(Level.DEGRADED, outbox.blocked)
        elif balance < wanted * cost:
            self._set_health(
                Level.DEGRADED,
                f"the node key pays for {balance // cost} more transactions: send it"
                f" {wanted * cost - balance} wei, {format_address(self._outbox.address)}",
            )
        else:
            self._set_health(Level.UP, "")

    def _heard(self, event: ChainEvent) -> None:
        if isinstance(event, ThawStarted) and event.node == self._node:
            if len(self._hurried) < MAX_HURRIED:
                self._hurried.add(event.payer)
            self.wake()
        elif isinstance(event, TermsChanged):
            self.wake()

    def _set_health(self, level: Level, reason: str) -> None:
        if level is Level.DEGRADED and self._health.reason != reason:
            _log.warning("settlement: %s", reason)
        since = self._health.since if level is self._health.level else self._clock()
        self._health = replace(self._health, level=level, reason=reason, since=since)


def _may_go(sighting: Sighting) -> bool:
    return not sighting.unpaid.under_way and sighting.unpaid.refused is None
