"""Signs attempts, stores them, hands them to the node, replaces them: the outbox's hand. Decides nothing.

The order of writes is the safety: an attempt is on disk before any node sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .access import ChainAccess
from .errors import ChainErrorCode, Reverted, RpcError
from .fees import Fees, raised_fees
from .policy import Rules, Sight
from .store import Attempt, Intent, IntentState, NewIntent, Order, OutboxStore
from .transaction import TransactionSigner, UnsignedTransaction

TRANSFER_GAS = 21_000


class Sender:
    """One key on one chain. `replacements` counts those of this process."""

    def __init__(
        self,
        chain: ChainAccess,
        store: OutboxStore,
        signer: TransactionSigner,
        chain_id: int,
        rules: Rules,
        clock: Callable[[], int],
    ) -> None:
        self._chain = chain
        self._store = store
        self._signer = signer
        self._chain_id = chain_id
        self._rules = rules
        self._clock = clock
        self._handed_at: dict[bytes, int] = {}
        self.replacements = 0

    async def replace(self, intent: Intent, sight: Sight, *, cancels: bool) -> None:
        """Sign the nonce again, dearer; where the cap leaves no room, hand over the old attempt once more."""
        newest = intent.newest
        fees = raised_fees(
            Fees(newest.max_fee, newest.priority_fee),
            sight.base_fee,
            await self._chain.priority_fee(),
            self._rules.fee_cap,
            self._rules.raise_percent,
        )
        if fees is None:
            await self.rebroadcast(intent)
            await self._store.set_note(intent.id, "the fee cap leaves no room for a replacement")
            if intent.order is Order.BUMP:
                await self._store.set_order(intent.id, None)
            return
        self.replacements += 1
        transaction = self.transaction(intent.request, newest.nonce, newest.gas, fees)
        if cancels:
            transaction = dataclasses.replace(transaction, to=self._signer.address, value=0, data=b"", gas=TRANSFER_GAS)
        await self.sign_and_send(intent, transaction, sight, cancels=cancels)
        if intent.order is Order.BUMP:
            await self._store.set_order(intent.id, None)

    async def sign_and_send(
        self, intent: Intent, transaction: UnsignedTransaction, sight: Sight, *, cancels: bool
    ) -> Intent:
        """Store the signed transaction, then send it. Returns the intent as it stands in the store."""
        signed = await self._signer.sign_transaction(transaction)
        attempt = Attempt(
            nonce=transaction.nonce,
            hash=signed.hash,
            raw=signed.raw,
            gas=transaction.gas,
            max_fee=transaction.max_fee,
            priority_fee=transaction.priority_fee,
            signed_at=sight.now,
            signed_block=sight.head,
            cancels=cancels,
        )
        await self._store.record_attempt(intent.id, attempt)
        intent = dataclasses.replace(
            intent, state=IntentState.SIGNED, nonce=attempt.nonce, attempts=(*intent.attempts, attempt), note=None
        )
        await self.broadcast(intent)
        return intent

    async def broadcast(self, intent: Intent) -> None:
        """Hand over the newest attempt. Whether a refusing node holds it all the same is asked, not read from words."""
        attempt = intent.newest
        try:
            await self._chain.send_raw(attempt.raw)
        except (RpcError, Reverted) as error:
            if isinstance(error, RpcError) and error.code is not ChainErrorCode.RPC_FAILED:
                raise
            if not await self._chain.knows(attempt.hash):
                await self._store.set_note(intent.id, error.message)
                return
        self._handed_at[attempt.hash] = self._clock()
        await self._store.mark_sent(intent.id, self._clock())
        if intent.order is Order.RESEND:
            await self._store.set_order(intent.id, None)

    async def rebroadcast(self, intent: Intent) -> None:
        """`broadcast`, unless this attempt was never refused and went out a moment ago."""
        handed = self._handed_at.get(intent.newest.hash)
        recently = handed is not None and self._clock() - handed < self._rules.replace_after_s
        if intent.state is IntentState.SIGNED or not recently:
            await self.broadcast(intent)

    def forget_all_but(self, live: set[bytes]) -> None:
        """Keep no memory of attempts that are over."""
        self._handed_at = {key: at for key, at in self._handed_at.items() if key in live}

    def transaction(self, request: NewIntent, nonce: int, gas: int, fees: Fees) -> UnsignedTransaction:
        """The request with a nonce and fees."""
        return UnsignedTransaction(
            chain_id=self._chain_id,
            nonce=nonce,
            to=request.to,
            value=request.value,
            data=request.data,
            gas=gas,
            max_fee=fees.max_fee,
            priority_fee=fees.priority,
        )
