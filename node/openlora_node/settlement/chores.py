"""What settlement does beside redeeming: anchor epochs, collect debts, share out royalties, pay the operator.

Each chore looks, and gives the intents to queue; whether the journal already has one like it is decided there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from openlora_chain.bindings import Calldata
from openlora_chain.store import NewIntent

from ..chainview import ChainParts
from .looking import Debt
from .policy import CLAIM_GAS, COLLECT_GAS, HARVEST_GAS, TRANSFER_MARGIN, Rules
from .rows import subject_of

EPOCHS_A_ROUND = 8
HARVESTS_A_ROUND = 16
HARVESTS_AT_ONCE = 8


class TotalsLike(Protocol):
    """What an epoch's receipts come to, amounts in wei."""

    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def first_seq(self) -> int: ...  # noqa: D102
    @property
    def last_seq(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def compute(self) -> int: ...  # noqa: D102
    @property
    def royalties(self) -> int: ...  # noqa: D102


class RootLike(Protocol):
    """One epoch, ready to be anchored."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def root(self) -> bytes: ...  # noqa: D102
    @property
    def totals(self) -> TotalsLike: ...  # noqa: D102


class EpochsLike(Protocol):
    """Which receipts form an epoch; `attribution.Epochs` is one. Called from a thread: may block on the disk."""

    def newest_closed(self, now: int) -> int:
        """The newest epoch to which no receipt can be added any more."""
        ...

    def next_with_receipts(self, number: int) -> int | None:
        """The first epoch from `number` on that has a receipt."""
        ...

    def root(self, number: int) -> RootLike | None:
        """An epoch's root and totals, None if no receipt finished in it."""
        ...

    def first_seq(self, number: int) -> int:
        """The least sequence number of a receipt that finished in this epoch or later, or of the next one."""
        ...


@dataclass(frozen=True)
class Sending:
    """Whose intents they are: sender, chain and node go into each."""

    sender: bytes
    chain_id: int
    node: bytes

    def intent(self, kind: str, subject: bytes, call: Calldata) -> NewIntent:
        """A call as an intent. `subject` tells it from others of its kind."""
        return NewIntent(kind, subject, self.chain_id, self.sender, call.to, call.data, call.value)


class Chores:
    """The chores of one node."""

    def __init__(self, parts: ChainParts, sending: Sending, rules: Rules, epochs: EpochsLike) -> None:
        self._parts = parts
        self._sending = sending
        self._rules = rules
        self._epochs = epochs
        self.anchored_through: int | None = None
        """The newest epoch found anchored on chain, or queued."""

    async def anchors(self, newest_queued: int | None, now: int) -> list[NewIntent]:
        """Epochs that are over and not anchored, oldest first."""
        node = self._sending.node
        closed = await asyncio.to_thread(self._epochs.newest_closed, now)
        seen = max((number for number in (newest_queued, self.anchored_through) if number is not None), default=-1)
        found: list[NewIntent] = []
        for _ in range(EPOCHS_A_ROUND):
            number = await asyncio.to_thread(self._epochs.next_with_receipts, seen + 1)
            if number is None or number > closed:
                break
            seen = number
            epoch = await asyncio.to_thread(self._epochs.root, number)
            if epoch is None:
                continue
            if any(await self._parts.anchor.root_of(node, number)):
                # By another journal of this node, restored from a backup since.
                self.anchored_through = number
                continue
            sums = epoch.totals
            totals = (sums.count, sums.first_seq, sums.last_seq, sums.tokens, sums.compute, sums.royalties)
            call = self._parts.anchor.anchor(node, number, epoch.root, totals)
            found.append(self._sending.intent("anchor", node + number.to_bytes(8, "big"), call))
        return found

    def collections(self, debts: Iterable[Debt], gas_price: int, now: int) -> list[NewIntent]:
        """Debts that an escrow can pay again, if that is worth the gas."""
        found = []
        for debt in debts:
            if self._rules.is_worth(min(debt.owed, debt.balance), COLLECT_GAS, gas_price):
                key = debt.key
                call = self._parts.settlement.collect(key.payer, key.signer, key.node, key.pipeline)
                found.append(self._sending.intent("collect", subject_of(call.data, now), call))
        return found

    async def claim(self, gas_price: int, now: int) -> NewIntent | None:
        """Pay the operator's balance to the recipient that the owner set, once that is worth it."""
        balance = await self._parts.settlement.operator_balance(self._sending.node)
        if not self._rules.is_worth(balance, TRANSFER_MARGIN * CLAIM_GAS, gas_price):
            return None
        call = self._parts.settlement.claim_operator(self._sending.node)
        return self._sending.intent("claim", subject_of(call.data, now), call)

    async def harvest(self, pipelines: Iterable[bytes], gas_price: int, now: int) -> NewIntent | None:
        """Share out the royalties of pipelines that were redeemed here, where there is enough to share."""
        sources: list[tuple[bytes, bytes]] = []
        for pipeline in pipelines:
            accrued, harvested = await self._parts.settlement.accumulator_of(self._sending.node, pipeline)
            if self._rules.is_worth(accrued - harvested, TRANSFER_MARGIN * HARVEST_GAS, gas_price):
                sources.append((self._sending.node, pipeline))
            if len(sources) == HARVESTS_AT_ONCE:
                break
        if not sources:
            return None
        call = self._parts.settlement.harvest_many(sources)
        return self._sending.intent("harvest", subject_of(call.data, now), call)


def same_call(subject: bytes) -> bytes:
    """The part of a subject that tells what is done."""
    return subject[:32]
