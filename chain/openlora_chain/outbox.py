"""The outbox: carries durable intents onto the chain, each once, whatever crashes, reorganises or lies in between.

It is the only sender of its key in this process and keeps the nonces itself. What to do next with an intent is decided
in `policy`; this file looks at the chain, acts, and writes down every step before its effect: an attempt is on disk
before a node sees it. Any step may be cut off and repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .access import ChainAccess
from .errors import ChainError, ChainErrorCode, Reverted, RpcError
from .evidence import find_inclusion, revert_data, who_spent
from .fees import Fees, first_fees
from .policy import (
    Abandon,
    Broadcast,
    Include,
    Reorged,
    Replace,
    Rules,
    Settle,
    Sight,
    Wait,
    check_order,
    decide,
    has_gap,
    next_nonce,
    room_for,
)
from .reverts import Revert
from .rpc import Call
from .sender import TRANSFER_GAS, Sender
from .store import HOLDS_NONCE, Inclusion, Intent, IntentState, NewIntent, Order, OutboxStore
from .transaction import TransactionSigner, UnsignedTransaction

_log = logging.getLogger(__name__)

FILL_KIND = "fill-nonce"
MAX_PAUSE_S = 60.0

Explain = Callable[[bytes], Revert]
"""Revert data → what it means."""
Clock = Callable[[], int]
"""Unix seconds."""


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """How the outbox stands, for health checks and metrics. `blocked` says what holds it up, None when nothing does."""

    queued: int = 0
    in_flight: int = 0
    mined: int = 0
    oldest_pending_s: int = 0
    replacements: int = 0
    foreign_nonces: int = 0
    blocked: str | None = None


class Outbox:
    """One key on one chain. `step` is one pass over all open intents; `run` steps until it is cancelled."""

    def __init__(
        self,
        chain: ChainAccess,
        store: OutboxStore,
        signer: TransactionSigner,
        chain_id: int,
        explain: Explain,
        rules: Rules | None = None,
        *,
        clock: Clock = lambda: int(time.time()),
        poll_s: float = 2.0,
    ) -> None:
        self._chain = chain
        self._store = store
        self._address = signer.address
        self._chain_id = chain_id
        self._explain = explain
        self._rules = rules or Rules()
        self._clock = clock
        self._sender = Sender(chain, store, signer, chain_id, self._rules, clock)
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._stepped = asyncio.Event()
        self._refusals: dict[bytes, tuple[int, int]] = {}
        self._foreign = 0
        self.status = OutboxStatus()

    def __repr__(self) -> str:
        return f"Outbox(0x{self._address.hex()}, {self.status})"

    @property
    def address(self) -> bytes:
        """The sending key's address."""
        return self._address

    @property
    def chain_id(self) -> int:
        """The chain it sends to."""
        return self._chain_id

    @property
    def confirmations(self) -> int:
        """Depth at which an inclusion counts as final; the block's own depth is 1."""
        return self._rules.confirmations

    async def submit(self, new: NewIntent) -> Intent:
        """Store the intent and wake the sender; the same kind and subject again returns the first.

        Raises ChainError INTENT_CONFLICT, OUTBOX_FULL.
        """
        if new.sender != self._address or new.chain_id != self._chain_id:
            raise ChainError(
                ChainErrorCode.INTENT_CONFLICT, "the intent names another sender or chain than this outbox"
            )
        intent = await self._store.submit(new, self._clock())
        self.wake()
        return intent

    def wake(self) -> None:
        """Step now: something was submitted or ordered, also by another writer of the store."""
        self._wake.set()

    async def order(self, identity: bytes, order: Order) -> None:
        """Bump, cancel or resend at the next step. Raises ChainError INTENT_UNKNOWN, INTENT_STATE."""
        intent = await self._store.find(identity)
        if intent is None:
            raise ChainError(ChainErrorCode.INTENT_UNKNOWN)
        check_order(intent, order)
        await self._store.set_order(identity, order)
        self.wake()

    async def wait(self, identity: bytes) -> Intent:
        """The intent once it is closed. Somebody must be running `run`."""
        while True:
            stepped = self._stepped
            intent = await self._store.find(identity)
            if intent is None:
                raise ChainError(ChainErrorCode.INTENT_UNKNOWN)
            if not intent.state.is_open and intent.order is None:
                return intent
            await stepped.wait()

    async def run(self) -> None:
        """Step at every poll and whenever woken. Errors of the chain are waited out; those of the store are raised."""
        pause = self._poll_s
        while True:
            self._wake.clear()
            try:
                await self.step()
                pause = self._poll_s
            except ChainError as error:
                if self.status.blocked != error.message:
                    _log.warning("outbox: %s", error)
                self.status = replace(self.status, blocked=error.message)
                pause = min(pause * 2, MAX_PAUSE_S)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def step(self) -> None:
        """One pass: carry out orders, see to what holds a nonce, send what is queued."""
        intents = await self._open()
        if intents:
            if await self._chain.chain_id() != self._chain_id:
                raise ChainError(ChainErrorCode.WRONG_CHAIN, f"the RPC serves another chain than {self._chain_id}")
            await self._carry_out_orders(intents)
            sight = await self._look()
            holding = [intent for intent in await self._open() if intent.state in HOLDS_NONCE]
            for intent in sorted(holding, key=lambda intent: intent.nonce or 0):
                await self._advance(intent, sight)
            await self._fill_gap(await self._open(), sight)
            blocked = await self._send_queued(await self._open(), sight)
        else:
            blocked = None
        self._report(await self._open(), blocked)
        stepped, self._stepped = self._stepped, asyncio.Event()
        stepped.set()

    async def _open(self) -> list[Intent]:
        return list(await self._store.open_intents(self._address, self._chain_id))

    async def _look(self) -> Sight:
        """Heads may differ between the answers of a load-balanced node; the policy waits where they contradict."""
        head = await self._chain.head()
        depth = max(head.number - self._rules.confirmations + 1, 0)
        account = self._address
        return Sight(
            now=self._clock(),
            head=head.number,
            base_fee=head.base_fee,
            account_nonce=await self._chain.nonce(account),
            settled_nonce=await self._chain.nonce(account, depth),
        )

    async def _carry_out_orders(self, intents: Sequence[Intent]) -> None:
        for intent in intents:
            if intent.order is Order.RESEND and not intent.state.is_open:
                await self._store.requeue(intent.id, "sent again by order", self._clock())
            elif intent.order is Order.CANCEL and intent.state is IntentState.QUEUED:
                await self._store.close(intent.id, IntentState.CANCELLED, "cancelled before it was sent", self._clock())

    async def _advance(self, intent: Intent, sight: Sight) -> None:
        assert intent.nonce is not None
        spent = sight.account_nonce > intent.nonce
        inclusion = await find_inclusion(self._chain, intent) if spent else None
        match decide(intent, inclusion, sight, self._rules):
            case Include(found):
                await self._store.mark_mined(intent.id, found, sight.now)
                if self._rules.confirmations == 1:
                    await self._settle(intent, found)
            case Settle(found):
                await self._settle(intent, found)
            case Reorged():
                await self._store.mark_reorged(intent.id, sight.now)
                await self._sender.broadcast(intent)
            case Replace(cancels):
                await self._sender.replace(intent, sight, cancels=cancels)
            case Broadcast():
                await self._sender.rebroadcast(intent)
            case Abandon():
                await self._abandon(intent, sight)
            case Wait():
                pass

    async def _settle(self, intent: Intent, inclusion: Inclusion) -> None:
        attempt = next(attempt for attempt in intent.live_attempts if attempt.hash == inclusion.tx_hash)
        now = self._clock()
        if attempt.cancels:
            await self._store.close(intent.id, IntentState.CANCELLED, "cancelled by an empty transfer", now)
        elif inclusion.succeeded:
            await self._store.close(intent.id, IntentState.FINAL, None, now)
        else:
            data = await revert_data(self._chain, _call_of(intent.request, attempt.gas), inclusion.block_number)
            revert = Revert("it would pass now") if data is None else self._explain(data)
            if revert.permanent:
                await self._store.close(intent.id, IntentState.FAILED, str(revert), now)
            else:
                await self._store.requeue(intent.id, f"reverted on chain: {revert}", now, reverted=True)
                self._pause(intent, intent.reverts + 1, now)

    async def _abandon(self, intent: Intent, sight: Sight) -> None:
        """The nonce is spent and no attempt has a receipt: find out who spent it before anything is signed anew."""
        assert intent.nonce is not None
        since = intent.live_attempts[0].signed_block - self._rules.confirmations
        spender = await who_spent(self._chain, self._address, intent.nonce, max(since, 0), sight.head)
        if spender in {attempt.hash for attempt in intent.live_attempts}:
            await self._store.set_note(intent.id, "mined, but the RPC hides the receipt: use another RPC")
            return
        if spender is None and intent.request.value and intent.order is not Order.RESEND:
            # Calls without value are safe to repeat, because the contracts count cumulatively. A payment is not.
            await self._store.set_note(
                intent.id, f"nonce {intent.nonce} is spent and the RPC cannot say by what: check, then resend"
            )
            return
        self._foreign += 1
        by = f"transaction 0x{spender.hex()}" if spender else "an unknown transaction"
        _log.warning("outbox: nonce %d was spent by %s from outside; the key is used elsewhere", intent.nonce, by)
        await self._store.requeue(intent.id, f"nonce {intent.nonce} was spent by {by} from outside", sight.now)

    async def _fill_gap(self, intents: list[Intent], sight: Sight) -> None:
        """Queue an empty transfer where a nonce is missing; like every intent it takes the lowest free nonce."""
        holding = [intent for intent in intents if intent.state in HOLDS_NONCE]
        queued = [intent for intent in intents if intent.state is IntentState.QUEUED]
        comes = any(intent.request.kind == FILL_KIND or self._may_try(intent, sight.now) for intent in queued)
        if comes or not has_gap(sight, holding, self._rules):
            return
        account = self._address
        subject = sight.account_nonce.to_bytes(8, "big") + sight.now.to_bytes(8, "big")
        _log.warning("outbox: nonce %d is missing below those in flight; filling it", sight.account_nonce)
        await self._store.submit(
            NewIntent(FILL_KIND, subject, self._chain_id, account, account, gas_limit=TRANSFER_GAS), sight.now
        )

    async def _send_queued(self, intents: list[Intent], sight: Sight) -> str | None:
        """Give nonces to what is queued, first come first served. Returns what holds all of them up, if anything."""
        pending = [intent for intent in intents if intent.state in (IntentState.SIGNED, IntentState.SENT)]
        holding = [intent for intent in intents if intent.state in HOLDS_NONCE]
        room = room_for(sight.account_nonce, holding, self._rules)
        ready = [
            intent for intent in intents if intent.state is IntentState.QUEUED and self._may_try(intent, sight.now)
        ]
        if not ready or room <= 0:
            return None
        fees = first_fees(sight.base_fee, await self._chain.priority_fee(), self._rules.fee_cap)
        if fees is None:
            return ChainErrorCode.FEE_CAP.remedy
        budget = await self._chain.balance(self._address)
        budget -= sum(intent.request.value + intent.newest.gas * intent.newest.max_fee for intent in pending)
        short = None
        for intent in ready:
            if room == 0:
                break
            transaction, most = None, intent.request.value
            if most <= budget:
                transaction = await self._prepare(intent, fees, sight.now)
                if transaction is None:
                    continue
                most = transaction.most
            if transaction is None or most > budget:
                short = f"the key 0x{self._address.hex()} lacks {most - budget} wei"
                await self._refuse(intent, short, 0, sight.now)
                continue
            transaction = replace(transaction, nonce=next_nonce(sight.account_nonce, holding))
            holding.append(await self._sender.sign_and_send(intent, transaction, sight, cancels=False))
            budget -= transaction.most
            room -= 1
        return short

    async def _prepare(self, intent: Intent, fees: Fees, now: int) -> UnsignedTransaction | None:
        """Simulate. None when the chain refuses, now or for good."""
        request = intent.request
        call = _call_of(request, request.gas_limit)
        try:
            await self._chain.call(call)
            needed = request.gas_limit or await self._chain.estimate_gas(call)
        except Reverted as error:
            revert = self._explain(error.data)
            if revert.permanent:
                await self._store.close(intent.id, IntentState.FAILED, str(revert), now)
            else:
                await self._refuse(intent, f"the simulation reverts: {revert}", self._refusals_of(intent), now)
            return None
        except RpcError as error:
            if error.code is not ChainErrorCode.RPC_FAILED:
                raise
            await self._refuse(intent, error.message, self._refusals_of(intent), now)
            return None
        if request.gas_limit is None:
            needed = min(needed * (100 + self._rules.gas_margin_percent) // 100, self._rules.max_gas)
        return self._sender.transaction(request, 0, needed, fees)

    async def _refuse(self, intent: Intent, note: str, refusals: int, now: int) -> None:
        if intent.note != note:
            await self._store.set_note(intent.id, note)
        self._pause(intent, refusals, now)

    def _pause(self, intent: Intent, refusals: int, now: int) -> None:
        self._refusals[intent.id] = refusals + 1, now + self._rules.pause_s(refusals)

    def _refusals_of(self, intent: Intent) -> int:
        return self._refusals.get(intent.id, (intent.reverts, 0))[0]

    def _may_try(self, intent: Intent, now: int) -> bool:
        return self._refusals.get(intent.id, (0, 0))[1] <= now

    def _report(self, intents: list[Intent], blocked: str | None) -> None:
        pending = [intent for intent in intents if intent.state in (IntentState.SIGNED, IntentState.SENT)]
        open_ids = {intent.id for intent in intents}
        live = {attempt.hash for intent in intents for attempt in intent.live_attempts}
        self._sender.forget_all_but(live)
        self._refusals = {key: value for key, value in self._refusals.items() if key in open_ids}
        self.status = OutboxStatus(
            queued=sum(intent.state is IntentState.QUEUED for intent in intents),
            in_flight=len(pending),
            mined=sum(intent.state is IntentState.MINED for intent in intents),
            oldest_pending_s=max((self._clock() - intent.live_attempts[0].signed_at for intent in pending), default=0),
            replacements=self._sender.replacements,
            foreign_nonces=self._foreign,
            blocked=blocked,
        )


def _call_of(request: NewIntent, gas: int | None) -> Call:
    return Call(request.sender, request.to, request.data, request.value, gas)
