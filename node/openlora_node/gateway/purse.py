"""The payer's money: signs requests and vouchers, and writes each promise into the journal before it leaves.

One transaction admits a request: caps, nonce, reservation, opening voucher, all or nothing. One transaction closes it:
receipt, leaves, closing voucher, what was spent. Requests of one ledger may run side by side; what they share is
counted here. Knows neither network nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from ..attribution import Evidence
from ..journal import (
    MAX_LIVE_NONCES,
    EscrowSnapshot,
    Journal,
    LedgerKey,
    ReceiptDraft,
    StoredReceipt,
    VoucherEntry,
    spending,
)
from ..journal import receipts as receipt_rows
from ..journal import requests as request_rows
from ..journal import vouchers as voucher_rows
from ..journal.books import Books
from ..journal.database import Transaction
from ..protocol.crypto import Address, Signer
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.pricing import MAX_WEI, RoyaltySchedule
from ..protocol.structs import Request, Voucher, body_hash
from .checking import Checked, grown
from .ledger_book import Amounts, LedgerBook
from .ledger_rows import adopt, amounts_of, charge_due, check_neighbours
from .offers import Offer
from .open_ledgers import OpenLedgers

CATCH_UP_S = 30.0
"""Longest wait for a request beside another to read what the node counts already."""
REQUEST_LIFE_S = 240
"""Less than the protocol's 300 s: the node's clock may be behind ours."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caps:
    """What may be spent, in wei."""

    per_request: int
    per_day: int


@dataclass(frozen=True)
class Ticket:
    """An admitted request: what is sent, and what was true when it was signed."""

    key: LedgerKey
    offer: Offer
    request: Signed[Request]
    digest: Digest
    opening: Signed[Voucher]
    prompt_tokens: int
    worth_before: int
    """What the ledger's newest voucher was worth before this request, in wei."""
    least_seq: int
    """The receipt's number is at least this."""


class Purse:
    """One payer's journal with one signer. Its methods may run side by side."""

    def __init__(self, journal: Journal, payer: bytes, signer: Signer, caps: Caps, clock: Callable[[], int]) -> None:
        self.journal = journal
        self.domain = journal.binding.domain
        self.payer = Address(payer)
        self.signer = signer
        self.caps = caps
        self.clock = clock
        self._ledgers = OpenLedgers(journal)

    def __repr__(self) -> str:
        return f"Purse(0x{self.payer.hex()}, {len(self._ledgers)} ledgers in use)"

    def key(self, node: bytes, pipeline: bytes) -> LedgerKey:
        """The ledger of this signer."""
        return LedgerKey(self.payer, node, self.signer.address, pipeline)

    async def admit(
        self,
        offer: Offer,
        body: bytes,
        *,
        prompt_tokens: int,
        max_tokens: int,
        max_fee: int,
        model: str,
        escrow: EscrowSnapshot,
    ) -> Ticket:
        """Sign a request with its opening voucher, count it against the caps and keep it: then it may be sent.

        Waits while another request of the ledger stands at the node's door. The ledger stays in use until `settle` or
        `give_up`. Raises SPEND_CAP, ESCROW_TOO_LOW, BUSY when the door stays shut, STORAGE_*.
        """
        if max_fee > self.caps.per_request:
            raise OpenLoraError(
                ErrorCode.SPEND_CAP,
                f"this request may cost {max_fee} wei; gateway.spend_per_request is {self.caps.per_request} wei:"
                " lower max_tokens, or raise it",
            )
        key = self.key(offer.node, offer.pipeline.id)
        now = self.clock()
        request = Request(
            payer=self.payer,
            node=offer.node,
            pipeline_id=offer.pipeline.id,
            quote_digest=offer.digest,
            body_hash=body_hash(body),
            max_fee=max_fee,
            max_tokens=max_tokens,
            nonce=secrets.token_bytes(32),
            issued_at=now,
            expires_at=now + REQUEST_LIFE_S,
        ).sign(self.domain, self.signer)
        digest = Digest(request.value.digest(self.domain))
        held = self._ledgers.enter(key, offer.schedule)
        try:
            await self._ledgers.to_door(held)
        except BaseException:
            self._ledgers.leave(key)
            raise
        held.at_door = digest
        try:
            async with self._ledgers.book(key) as book:
                worth_before = book.worth(book.voucher)
                book.open(digest, offer, prompt_tokens)
                amounts = book.next_voucher(digest)
                opening = self._voucher(key, amounts, digest)
                spend = spending.Spend(
                    request_digest=digest,
                    node=offer.node,
                    signer=key.signer,
                    pipeline=key.pipeline,
                    at=now,
                    amount=max_fee,
                    given=max(0, book.worth(amounts) - worth_before),
                    model=model,
                    prompt_tokens=prompt_tokens,
                    quote=offer.signed.pack(),
                    preimage=offer.pipeline.pack(),
                )
                entry = request_rows.Entry(request, digest, key.signer, escrow, None, MAX_WEI)
                least_seq = await self.journal.transact(lambda tx: self._admit(tx, entry, spend))
        except BaseException:
            held.book.close(digest)
            self._ledgers.from_door(held, digest)
            self._ledgers.leave(key)
            raise
        return Ticket(key, offer, request, digest, opening, prompt_tokens, worth_before, least_seq)

    async def accepted(self, ticket: Ticket) -> None:
        """The node took the request, and with it the opening voucher."""
        held = self._ledgers[ticket.key]
        async with held.lock:
            held.book.accept(ticket.digest)
            held.book.voucher = held.book.voucher.joined(amounts_of(ticket.opening.value))
            await self.journal.transact(lambda tx: self._keep(tx, ticket.opening, ticket.offer.schedule))
        self._ledgers.from_door(held, ticket.digest)

    def generated(self, ticket: Ticket, tokens: int) -> None:
        """So many tokens have come in all: they count in the next voucher."""
        held = self._ledgers[ticket.key]
        held.book.generated(ticket.digest, tokens)
        held.tell()

    async def pay(self, ticket: Ticket, demanded: Amounts) -> Signed[Voucher]:
        """The next voucher while output is paused, on disk when this returns.

        It covers what was received and no more. What the node demands may hold tokens of a request beside this one that
        came and were not read yet: they are waited for. Raises RECEIPT_INVALID when it demands more than it has sent.
        """
        try:
            async with asyncio.timeout(CATCH_UP_S):
                while True:
                    async with (
                        self._ledgers.shut_door(ticket.key, ticket.digest),
                        self._ledgers.book(ticket.key) as book,
                    ):
                        amounts = book.next_voucher()
                        if amounts.covers(demanded):
                            return await self._pay(ticket, book, amounts)
                        if len(book.requests) == 1:
                            break
                    await self._ledgers[ticket.key].changed.wait()
        except TimeoutError:
            pass
        raise OpenLoraError(
            ErrorCode.RECEIPT_INVALID, "the node demands a voucher over more than it has sent: not paid"
        )

    async def settle(
        self, ticket: Ticket, checked: Checked, salt: bytes, evidence: Evidence
    ) -> tuple[StoredReceipt, Signed[Voucher]]:
        """Keep a checked receipt and its leaves with the voucher that answers it. Ends the request.

        Raises RECEIPT_INVALID where it contradicts a receipt that is held; then the request is still to be given up.
        """
        async with self._ledgers.shut_door(ticket.key, ticket.digest), self._ledgers.book(ticket.key) as book:
            open_request = book.requests.pop(ticket.digest)
            try:
                kept, voucher = await self.journal.transact(
                    lambda tx: self._settle(tx, ticket.key, ticket.offer, ticket.digest, checked, salt, evidence, book)
                )
            except BaseException:
                book.requests[ticket.digest] = open_request
                await self._ledgers.refresh(ticket.key, book)
                raise
        self._ledgers.from_door(self._ledgers[ticket.key], ticket.digest)
        self._ledgers.leave(ticket.key)
        return kept, voucher

    async def settle_late(
        self, spend: spending.Spend, offer: Offer, checked: Checked, salt: bytes, evidence: Evidence
    ) -> tuple[StoredReceipt, Signed[Voucher]]:
        """The same for a request of an earlier life of this process. Raises RECEIPT_INVALID, NOT_FOUND."""
        key = LedgerKey(self.payer, spend.node, spend.signer, spend.pipeline)
        self._ledgers.enter(key, offer.schedule)
        try:
            async with self._ledgers.book(key) as book:
                digest = Digest(spend.request_digest)
                try:
                    return await self.journal.transact(
                        lambda tx: self._settle(tx, key, offer, digest, checked, salt, evidence, book)
                    )
                except BaseException:
                    await self._ledgers.refresh(key, book)
                    raise
        finally:
            self._ledgers.leave(key)

    async def give_up(self, ticket: Ticket, note: str, received: bytes | None = None) -> int:
        """No receipt comes, or none that holds: release the reservation. Ends the request.

        Returns what the vouchers given with it are worth at most, in wei: that counts as spent. `received` is the
        output hash of what came, so that a receipt that turns up later is paid only if it is over exactly that.
        """
        held = self._ledgers[ticket.key]
        try:
            async with held.lock:
                held.book.close(ticket.digest)

                def write(tx: Transaction) -> int:
                    request_rows.interrupt(tx, ticket.digest)
                    return spending.lost(tx, ticket.digest, note, received)

                return await self.journal.transact(write)
        finally:
            self._ledgers.from_door(held, ticket.digest)
            self._ledgers.leave(ticket.key)

    async def interrupted(self) -> int:
        """At start-up, before the first `admit`: what a lost process left open counts what its vouchers may have given.

        Returns how many requests there were.
        """

        def write(tx: Transaction) -> int:
            for spend in spending.unsettled(tx):
                if spend.state is spending.SpendState.OPEN:
                    spending.lost(tx, spend.request_digest, "the gateway ended before the response did")
            return request_rows.interrupt_running(tx)

        return await self.journal.transact(write)

    async def adopt(self, key: LedgerKey, schedule: RoyaltySchedule, theirs: Signed[Voucher], used: Amounts) -> bool:
        """Go on where a voucher of ours, shown by the node, says that we were; whether that moved the ledger.

        Does nothing while requests run in the ledger: their receipts may be among what the node counts.
        """
        self._ledgers.enter(key, schedule)
        try:
            async with self._ledgers.book(key) as book:
                if book.requests:
                    return False
                return await self.journal.transact(lambda tx: adopt(tx, key, schedule, theirs, used))
        finally:
            self._ledgers.leave(key)

    async def charge_due(self, ticket: Ticket, seq: int) -> bool:
        """Whether the receipt with this number may hold its ledger's settlement charge."""
        return await self.journal.transact(lambda tx: charge_due(tx, ticket.key, seq))

    def node_holds(self, key: LedgerKey, amounts: Amounts) -> None:
        """A node showed its newest voucher of ours: the next one builds on that, not on one that it refused."""
        self._ledgers.node_holds(key, amounts)

    # inside

    async def _pay(self, ticket: Ticket, book: LedgerBook, amounts: Amounts) -> Signed[Voucher]:
        voucher = self._voucher(ticket.key, amounts, ticket.digest)
        given = max(0, book.worth(amounts) - ticket.worth_before)

        def write(tx: Transaction) -> None:
            spending.give(tx, ticket.digest, given)
            self._keep(tx, voucher, ticket.offer.schedule)

        await self.journal.transact(write)
        book.voucher = amounts
        return voucher

    def _keep(self, tx: Transaction, voucher: Signed[Voucher], schedule: RoyaltySchedule) -> None:
        """The newest of its ledger, unless the journal holds one that the node was shown and refused."""
        try:
            voucher_rows.advance_voucher(tx, self._entry(voucher, schedule))
        except OpenLoraError as error:
            if error.code is not ErrorCode.VOUCHER_CONFLICT:
                raise
        self._ledgers.signed(LedgerKey.of(voucher.value, self.signer.address), amounts_of(voucher.value))

    def _admit(self, tx: Transaction, entry: request_rows.Entry, spend: spending.Spend) -> int:
        spending.reserve(tx, spend, self.caps.per_day)
        request_rows.admit(tx, entry, spend.at, MAX_LIVE_NONCES)
        row = tx.one("SELECT max(seq) FROM receipts WHERE node = ?", spend.node)
        return 0 if row[0] is None else row[0] + 1

    def _settle(
        self,
        tx: Transaction,
        key: LedgerKey,
        offer: Offer,
        digest: Digest,
        checked: Checked,
        salt: bytes,
        evidence: Evidence,
        book: LedgerBook,
    ) -> tuple[StoredReceipt, Signed[Voucher]]:
        receipt = checked.receipt.value
        check_neighbours(tx, receipt.node, receipt.seq, receipt.previous)
        before = Books(tx).ledger(key).tally
        after = grown(before, receipt, offer, charged=checked.charged)
        draft = ReceiptDraft(checked.receipt, salt, after, evidence.pack())
        kept = receipt_rows.accept_receipt(tx, self.domain, digest, draft)
        spending.paid(tx, digest, receipt.fee, charged=checked.charged)
        self._ledgers.load(tx, key, book)
        amounts = book.next_voucher()
        voucher = self._voucher(key, amounts, kept.digest)
        self._keep(tx, voucher, offer.schedule)
        book.voucher = amounts
        return kept, voucher

    def _voucher(self, key: LedgerKey, amounts: Amounts, reference: bytes) -> Signed[Voucher]:
        return Voucher(
            payer=key.payer,
            node=key.node,
            pipeline_id=key.pipeline,
            cumulative_tokens=amounts.tokens,
            cumulative_compute=amounts.compute,
            reference_digest=reference,
        ).sign(self.domain, self.signer)

    def _entry(self, voucher: Signed[Voucher], schedule: RoyaltySchedule) -> VoucherEntry:
        return VoucherEntry(voucher, Address(self.signer.address), schedule.value(voucher.value))
