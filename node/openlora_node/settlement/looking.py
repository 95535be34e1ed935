"""What the chain says of the ledgers that are not paid: channels, escrow, terms, signers. Sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openlora_chain.bindings import Channel
from openlora_chain.errors import ChainError, ChainErrorCode

from ..chainview import FOREVER, ChainParts
from ..journal import Journal, LedgerKey
from ..journal.pipelines import KnownPipeline
from .policy import Due
from .rows import Unpaid

SIDE_BY_SIDE = 8
"""Ledgers whose reads run at once: an RPC endpoint counts requests a second."""


@dataclass(frozen=True)
class Debt:
    """What a channel owes for vouchers accepted when its escrow ran short, and what is in that escrow now. Wei."""

    key: LedgerKey
    owed: int
    balance: int


@dataclass(frozen=True)
class Sighting:
    """What was found of one ledger: what is due and what is owed, either perhaps None."""

    unpaid: Unpaid
    due: Due | None
    debt: Debt | None


class Looking:
    """Looks at one node's ledgers. Methods raise OpenLoraError and ChainError as reads of the chain do."""

    def __init__(self, journal: Journal, parts: ChainParts, node: bytes, confirmations: int) -> None:
        self._journal = journal
        self._parts = parts
        self._node = node
        self._confirmations = confirmations

    async def look(self, ledgers: Sequence[Unpaid]) -> list[Sighting]:
        """Every ledger as the chain has it; records what was paid at confirmation depth."""
        head = (await self._parts.rpc.head()).number
        found: list[Sighting] = []
        for start in range(0, len(ledgers), SIDE_BY_SIDE):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(item, head)) for item in ledgers[start : start + SIDE_BY_SIDE]]
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
            found += [task.result() for task in tasks]
        return _share_escrow(found)

    async def _one(self, unpaid: Unpaid, head: int) -> Sighting:
        ledger, key = unpaid.ledger, unpaid.ledger.key
        channel = await self._channel(key, None)
        accepted = _accepted(channel, unpaid.known)
        owed = channel.compute_debt + channel.royalty_debt
        if accepted - owed > ledger.redeemed:
            await self._record(unpaid, head)
        escrow = await self._parts.view.escrow(key.payer, key.node)
        debt = Debt(key, owed, escrow.balance) if owed else None
        value = ledger.voucher_value - accepted
        if value <= 0:
            return Sighting(unpaid, None, debt)
        due = Due(
            key=key,
            value=value,
            since=unpaid.since,
            balance=escrow.balance,
            thawing=escrow.thawing,
            thaw_end=escrow.thaw_end,
            terms_until=await self._terms_until(unpaid.known),
            signer_ends=await self._signer_ends(key),
            first=not channel.tokens and not channel.compute,
            unregistered_parts=await self._unregistered_parts(unpaid.known),
        )
        return Sighting(unpaid, due, debt)

    async def _record(self, unpaid: Unpaid, head: int) -> None:
        """Write down what was paid, as of the depth at which no reorg takes it back."""
        at = head - self._confirmations + 1
        if at <= self._parts.deployment.block:
            return
        try:
            channel = await self._channel(unpaid.ledger.key, at)
        except ChainError as error:
            if error.code in (ChainErrorCode.RPC_FAILED, ChainErrorCode.CONTRACT_MISMATCH):
                # This endpoint keeps no state of that block, or the contract is younger: later.
                return
            raise
        paid = _accepted(channel, unpaid.known) - channel.compute_debt - channel.royalty_debt
        if paid > unpaid.ledger.redeemed:
            await self._journal.record_redeemed(unpaid.ledger.key, paid)
            self._parts.view.forget_escrow(unpaid.ledger.key.payer, self._node)

    async def _channel(self, key: LedgerKey, at: int | None) -> Channel:
        return await self._parts.settlement.channel_of(key.payer, key.signer, key.node, key.pipeline, at)

    async def _terms_until(self, known: KnownPipeline) -> int:
        parts = known.pipeline
        versions = [(parts.base, parts.base_terms_version), *((one.id, one.terms_version) for one in parts.adapters)]
        return min([await self._parts.view.accepted_until(*version) for version in versions], default=FOREVER)

    async def _signer_ends(self, key: LedgerKey) -> int:
        if key.signer == key.payer:
            return 0
        payer, ends_at = await self._parts.settlement.signer_of(key.signer)
        return ends_at if payer == key.payer else 1

    async def _unregistered_parts(self, known: KnownPipeline) -> int:
        registered = await self._parts.settlement.parts_of(known.pipeline.id)
        return 0 if registered else 1 + len(known.pipeline.adapters)


def _accepted(channel: Channel, known: KnownPipeline) -> int:
    """What the vouchers that the channel accepted are worth, paid or not."""
    return channel.compute + known.schedule.royalties(channel.tokens)


def _share_escrow(found: list[Sighting]) -> list[Sighting]:
    """One escrow pays all ledgers of a payer: each sees what those before it leave."""
    left: dict[bytes, int] = {}
    shared: list[Sighting] = []
    for sighting in found:
        due = sighting.due
        if due is not None:
            balance = left.get(due.key.payer, due.balance)
            left[due.key.payer] = max(0, balance - due.value)
            due = replace(due, balance=balance)
        shared.append(Sighting(sighting.unpaid, due, sighting.debt))
    return shared
