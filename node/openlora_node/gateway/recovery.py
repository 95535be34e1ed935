"""Brings the books with a node in line: after a crash, a lost stream or a lost journal, by /openlora/voucher/1.

The node shows the newest vouchers that it holds and the receipts that none covers. A voucher is ours if we signed it,
whatever our journal says; a receipt is paid if it is for a request of ours and holds as far as we still know. What we
cannot check is not paid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from ..attribution import Evidence
from ..journal import Journal, LedgerKey, spending
from ..journal.books import Books
from ..journal.database import Transaction
from ..journal.receipts import receipt_of
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import Account, GetAccount, Ledger, Proof, PutVoucher, VoucherReply
from ..protocol.pipeline import Pipeline
from ..protocol.pricing import TOKENS_PER_RATE, RoyaltySchedule
from ..protocol.structs import Receipt, Request, Voucher
from .accounts import ask, ask_proof, signed_query
from .checking import Checked, Expected, check_receipt
from .evidence import Ordered, check_evidence
from .ledger_book import Amounts
from .ledger_rows import amounts_of, charge_due
from .offers import Components, pipeline_parts, reopen_offer
from .ports import Accounts, Chain, Conversation, TermsLike
from .purse import Purse

SETTLED_AFTER_S = 300
"""A node looked at so long after the last loss has said all that it will say of it."""
MAX_LOOKED = 10_000
UNPAID_TOKENS = 1_024
"""Output pauses so far past the newest voucher: a receipt over more is not believed."""

Prove = Callable[[bytes], Awaitable[Proof]]
"""Asks the node for what proves a receipt, by its digest."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """What came of looking at one node's account."""

    settled: int = 0
    """Receipts that were late and are paid now."""
    disputed: int = 0
    """Receipts that cannot be checked or do not hold: not paid."""
    adopted: int = 0
    """Ledgers that go on where the node showed that we had signed for."""


class Recovery:
    """Looks at accounts, one node at a time each."""

    def __init__(self, purse: Purse, chain: Chain, accounts: Accounts) -> None:
        self._purse = purse
        self._chain = chain
        self._accounts = accounts
        self._running: dict[bytes, asyncio.Lock] = {}
        self._looked: dict[bytes, int] = {}
        self.disputed: dict[bytes, int] = {}
        """Nodes that claim receipts which were not paid, and how many."""

    @property
    def _journal(self) -> Journal:
        return self._purse.journal

    async def pending(self) -> list[bytes]:
        """Nodes with requests that have no kept receipt, or with fees that no voucher covers, not looked at since."""

        def read(tx: Transaction) -> list[tuple[bytes, int]]:
            now = self._purse.clock()
            rows = tx.all(
                "SELECT node, max(at) FROM (SELECT node, at FROM spends WHERE state <> 'paid' AND at > ?"
                " UNION ALL SELECT node, ? FROM accounts WHERE owed > ?) GROUP BY node LIMIT 1000",
                now - 14 * spending.DAY_S, now, bytes(32),
            )  # fmt: skip
            return [(row[0], row[1]) for row in rows]

        found = await self._journal.transact(read)
        return [node for node, newest in found if self._looked.get(node, 0) < newest + SETTLED_AFTER_S]

    async def look(self, node: bytes) -> Recovered:
        """Ask the node for our account and settle what is open. Raises NODE_LOST, NOT_FOUND, what the node says."""
        lock = self._running.setdefault(node, asyncio.Lock())
        async with lock:
            try:
                conversation = await self._accounts.talk(node)
                try:
                    found = await self._look(node, conversation)
                finally:
                    await conversation.close()
                if len(self._looked) >= MAX_LOOKED:
                    self._looked.clear()
                self._looked[node] = self._purse.clock()
                return found
            finally:
                self._running.pop(node, None)

    async def try_look(self, node: bytes) -> None:
        """The same, where failing is no news."""
        try:
            found = await self.look(node)
        except OpenLoraError as error:
            logger.info("the account with node %s could not be read: %s", node.hex()[:8], error)
            return
        if found.settled or found.disputed or found.adopted:
            logger.info("account with node %s: %s", node.hex()[:8], found)

    async def _look(self, node: bytes, conversation: Conversation) -> Recovered:
        query = signed_query(self._purse, node)
        account = await ask(conversation, GetAccount(query=query))
        if not isinstance(account, Account):
            raise ProtocolError(ErrorCode.MALFORMED, "the node answered with something else than an account")
        settled = disputed = adopted = 0
        for packed in account.open_receipts:
            late = Signed.unpack(Receipt, packed)
            closing = await self._settle(node, late, partial(ask_proof, conversation, query))
            if closing is None:
                disputed += 1
            else:
                settled += 1
                await self._put(conversation, closing)
        for ledger in account.ledgers:
            if ledger.signer == self._purse.signer.address:
                adopted += await self._reconcile(node, ledger, conversation)
        self.disputed.pop(node, None)
        if disputed:
            self.disputed[node] = disputed
        return Recovered(settled, disputed, adopted)

    async def _settle(self, node: bytes, signed: Signed[Receipt], prove: Prove) -> Signed[Voucher] | None:
        """Pay a late receipt; None if it is not paid."""
        receipt = signed.value
        found = await self._journal.transact(lambda tx: _known(tx, receipt))
        if found is None:
            logger.warning("node %s claims a receipt for a request that this journal does not know", node.hex()[:8])
            return None
        spend, request, kept, newest = found
        offer = reopen_offer(spend.quote, spend.preimage, self._purse.domain)
        key = LedgerKey(self._purse.payer, node, spend.signer, spend.pipeline)
        if kept:
            return newest  # the receipt is ours already, only its voucher did not arrive
        keys = frozenset(
            found for found in (self._chain.key_of(node), offer.signed.signer(self._purse.domain)) if found is not None
        )
        expected = Expected(
            request=request,
            request_digest=spend.request_digest,
            offer=offer,
            prompt_tokens=spend.prompt_tokens,
            completion_tokens=None,
            output=spend.received,
            keys=keys,
            now=self._purse.clock(),
            charge_due=await self._journal.transact(lambda tx: charge_due(tx, key, receipt.seq)),
            most_tokens=None if spend.received is not None else UNPAID_TOKENS,
        )
        components = await self._components(offer.pipeline)
        try:
            checked: Checked = check_receipt(signed, expected, self._purse.domain)
            proof = await prove(receipt.digest(self._purse.domain))
            evidence = Evidence.read(proof.evidence, proof.salt)
            check_evidence(receipt, evidence, Ordered(replace(offer, components=components), spend.signer))
            _, closing = await self._purse.settle_late(spend, offer, checked, proof.salt, evidence)
        except OpenLoraError as error:
            if error.code.retryable:
                raise
            logger.warning("a late receipt of node %s is not paid: %s", node.hex()[:8], error.message)
            note = error.message
            await self._journal.transact(lambda tx: spending.annotate(tx, spend.request_digest, note))
            return None
        return closing

    async def _reconcile(self, node: bytes, shown: Ledger, conversation: Conversation) -> int:
        """Hold the node's view of a ledger against ours. Returns whether ours was moved on."""
        pipeline = Pipeline.unpack(shown.pipeline)
        key = self._purse.key(node, pipeline.id)
        ours = (await self._journal.ledger(key)).newest_voucher
        if not shown.voucher:
            if ours is not None:
                try:
                    await self._put(conversation, ours)
                except OpenLoraError as error:
                    if error.code is not ErrorCode.VOUCHER_CONFLICT:
                        raise
                    self._purse.node_holds(key, Amounts())
            return 0
        theirs = Signed.unpack(Voucher, shown.voucher)
        value = theirs.value
        if (value.payer, value.node, value.pipeline_id) != (key.payer, key.node, key.pipeline):
            raise ProtocolError(ErrorCode.RECEIPT_INVALID, "the node shows a voucher of another ledger as ours")
        if theirs.signer(self._purse.domain) != self._purse.signer.address:
            raise ProtocolError(ErrorCode.RECEIPT_INVALID, "the node shows a voucher that we did not sign as ours")
        schedule = await self._schedule(pipeline)
        used = Amounts(shown.tokens, int.from_bytes(shown.compute_micro_wei, "big") // TOKENS_PER_RATE)
        adopted = await self._purse.adopt(key, schedule, theirs, used)
        if ours is not None and not amounts_of(value).covers(amounts_of(ours.value)):
            try:
                await self._put(conversation, ours)
            except OpenLoraError as error:
                if error.code is not ErrorCode.VOUCHER_CONFLICT:
                    raise
                # It was signed for more than came to be: requests that the node dropped or refused.
                self._purse.node_holds(key, amounts_of(value))
        return int(adopted)

    async def _schedule(self, pipeline: Pipeline) -> RoyaltySchedule:
        rates = [terms.rate for terms in await self._terms(pipeline)]
        return RoyaltySchedule.of(pipeline, rates[0], tuple(rates[1:]))

    async def _components(self, pipeline: Pipeline) -> tuple[Components, ...]:
        return tuple([terms.components for terms in await self._terms(pipeline)])

    async def _terms(self, pipeline: Pipeline) -> list[TermsLike]:
        found = []
        for artifact, version in pipeline_parts(pipeline):
            terms = await self._chain.terms_at(artifact, version)
            if terms is None:
                raise ProtocolError(ErrorCode.BAD_PIPELINE, "the node shows a ledger of terms that do not exist")
            found.append(terms)
        return found

    async def _put(self, conversation: Conversation, voucher: Signed[Voucher]) -> None:
        reply = await ask(conversation, PutVoucher(voucher=voucher.pack()))
        if not isinstance(reply, VoucherReply):
            raise ProtocolError(ErrorCode.MALFORMED, "the node answered a voucher with something else")


def _known(tx: Transaction, receipt: Receipt) -> tuple[spending.Spend, Request, bool, Signed[Voucher] | None] | None:
    """The spend, the request, whether its receipt is kept, and the ledger's newest voucher."""
    spend = spending.find(tx, receipt.request_digest)
    row = tx.one("SELECT signed FROM requests WHERE digest = ?", receipt.request_digest)
    if spend is None or row is None:
        return None
    request = Signed.unpack(Request, row[0]).value
    ledger = Books(tx).ledger(LedgerKey(request.payer, request.node, spend.signer, spend.pipeline))
    kept = receipt_of(tx, receipt.request_digest) is not None  # type: ignore[arg-type]
    return spend, request, kept, ledger.newest_voucher
