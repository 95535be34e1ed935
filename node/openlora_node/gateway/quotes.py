"""Quotes held while they live, one a node and pipeline, and which ledgers have paid their node's settlement charge.

The picker reads here what a node would charge once: a ledger that has paid costs less than one yet to be opened.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ..journal.books import LEDGER_COLUMNS, ledger_of
from ..journal.database import Transaction
from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import AskQuote, QuoteReply
from ..protocol.pipeline import Pipeline
from ..protocol.structs import Quote
from .offers import Offer, pipeline_parts, verify_quote
from .ports import Chain, Exchange
from .purse import Purse

QUOTE_TIMEOUT_S = 10.0
MAX_OFFERS = 1_000
MAX_PAID = 10_000
UNQUOTED_WEI = 1
"""A node that was not asked yet may charge something: more than one that is known to be paid."""


class Quotes:
    """What nodes asked of one payer. Its methods may run side by side."""

    def __init__(self, purse: Purse, chain: Chain) -> None:
        self._purse = purse
        self._chain = chain
        self._offers: OrderedDict[tuple[bytes, bytes], Offer] = OrderedDict()
        self._paid: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()

    def __repr__(self) -> str:
        return f"Quotes({len(self._offers)} held, {len(self._paid)} ledgers charged)"

    async def load(self) -> None:
        """Read from the journal which ledgers have paid. Raises STORAGE_*."""
        payer, signer = self._purse.payer, self._purse.signer.address

        def read(tx: Transaction) -> list[tuple[bytes, bytes]]:
            sql = f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE payer = ? AND signer = ? LIMIT ?"  # noqa: S608 - constants
            ledgers = [ledger_of(row) for row in tx.all(sql, payer, signer, MAX_PAID)]
            return [(each.key.node, each.key.pipeline) for each in ledgers if each.tally.compute_micro_wei]

        for node, pipeline in await self._purse.journal.transact(read):
            self.paid(node, pipeline)

    async def offer(self, exchange: Exchange, node: bytes, pipeline: Pipeline) -> Offer:
        """The quote that is held while it is fresh and of the node's present key, else a new one.

        Raises what `ask_quote` raises.
        """
        key = node, pipeline.id
        held = self._offers.get(key)
        now, domain = self._purse.clock(), self._purse.domain
        if held is not None and held.is_fresh(now) and held.signed.signer(domain) == self._chain.key_of(node):
            return held
        payer = self._purse.payer
        offer = await ask_quote(exchange, self._chain, domain, payer=payer, node=node, pipeline=pipeline, now=now)
        self._offers[key] = offer
        while len(self._offers) > MAX_OFFERS:
            self._offers.popitem(last=False)
        return offer

    def forget(self, node: bytes, pipeline: bytes) -> None:
        """The node does not honour it any more."""
        self._offers.pop((node, pipeline), None)

    def paid(self, node: bytes, pipeline: bytes) -> None:
        """A receipt with compute was kept: from then on the ledger's charge is not due."""
        self._paid[node, pipeline] = None
        self._paid.move_to_end((node, pipeline))
        while len(self._paid) > MAX_PAID:
            self._paid.popitem(last=False)

    def charge_due(self, node: bytes, pipeline: bytes) -> int:
        """Wei that the node would charge once for the next response: 0 where that is paid."""
        if (node, pipeline) in self._paid:
            return 0
        held = self._offers.get((node, pipeline))
        return UNQUOTED_WEI if held is None else held.quote.settlement_charge


async def ask_quote(
    exchange: Exchange, chain: Chain, domain: Domain, *, payer: bytes, node: bytes, pipeline: Pipeline, now: int
) -> Offer:
    """A node's quote, verified. Raises what `verify_quote` raises, NODE_LOST when none comes, CHAIN_FAILED."""
    key = chain.key_of(node)
    if key is None:
        raise OpenLoraError(ErrorCode.WRONG_NODE, "the registry knows no key of this node any more")
    try:
        async with asyncio.timeout(QUOTE_TIMEOUT_S):
            await exchange.send(AskQuote(id=1, payer=payer, pipeline=pipeline.pack()))
            reply = await exchange.receive()
    except TimeoutError:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the node sent no quote in time") from None
    if not isinstance(reply, QuoteReply):
        raise ProtocolError(ErrorCode.MALFORMED, "the node answered a question for a quote with something else")
    terms = [await chain.terms_at(artifact, version) for artifact, version in pipeline_parts(pipeline)]
    if any(entry is None for entry in terms):
        raise OpenLoraError(ErrorCode.BAD_PIPELINE, "the chain does not know these terms of an artifact")
    return verify_quote(
        Signed.unpack(Quote, reply.quote),
        domain=domain,
        payer=payer,
        node=node,
        node_key=key,
        pipeline=pipeline,
        terms=[entry for entry in terms if entry is not None],
        now=now,
    )
