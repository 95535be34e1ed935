"""Answers to `ask`: what a pipeline costs a payer here, signed. A quote binds the node until it expires."""

from __future__ import annotations

from collections.abc import Callable

from ..admission import OpenQuote
from ..chainview.values import Kind
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.pipeline import Pipeline
from ..protocol.pricing import RoyaltySchedule
from ..protocol.structs import Quote, Royalty
from .desk import Desk
from .facts import parts_of
from .ports import Prices
from .quotes import QuoteBook


class Quoting:
    """Makes quotes and finds them again. The same question within half a quote's life gets the same quote."""

    def __init__(self, desk: Desk, prices: Callable[[], Prices]) -> None:
        self._desk = desk
        self._prices = prices
        self._book = QuoteBook(desk.options.max_quotes, desk.options.max_quotes_per_peer)

    def find(self, digest: bytes) -> OpenQuote | None:
        """The quote of this digest, if it is remembered."""
        return self._book.find(digest)

    async def quote(self, payer: bytes, packed: bytes, peer: str) -> OpenQuote:
        """A quote for a packed pipeline, asked for by `peer`.

        Raises MALFORMED, BAD_PIPELINE, MODEL_NOT_FOUND, QUOTE_EXPIRED for superseded terms, CHAIN_FAILED.
        """
        pipeline = Pipeline.unpack(packed)
        if pipeline.base not in self._desk.engines:
            raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND)
        self._desk.facts.check_base(pipeline)
        now, prices = self._desk.clock(), self._prices()
        until = await self._desk.facts.accepted_until(pipeline)
        if until <= now:
            raise OpenLoraError(
                ErrorCode.BAD_PIPELINE, "terms in this pipeline are superseded: name the current versions"
            )
        held = self._book.newest(payer, pipeline.id)
        if held is not None and self._still_good(held, prices, now, until):
            return held
        quote = await self._sign(payer, pipeline, prices, now, until)
        self._book.add(quote, peer, now)
        return quote

    def _still_good(self, held: OpenQuote, prices: Prices, now: int, until: int) -> bool:
        quote = held.quote
        stated = Prices(quote.input_rate, quote.output_rate, quote.settlement_charge)
        left = quote.expires_at - now
        return stated == prices and quote.expires_at <= until and 2 * left > self._desk.options.quote_s

    async def _sign(self, payer: bytes, pipeline: Pipeline, prices: Prices, now: int, until: int) -> OpenQuote:
        royalties = []
        for index, (artifact, version, _) in enumerate(parts_of(pipeline)):
            terms = await self._desk.facts.terms(artifact, version, Kind.ADAPTER if index else Kind.BASE)
            royalties.append(Royalty(artifact=artifact, terms_version=version, rate=terms.rate, owner=terms.owner))
        quote = Quote(
            payer=payer,
            node=self._desk.house.node,
            pipeline_id=pipeline.id,
            input_rate=prices.input_rate,
            output_rate=prices.output_rate,
            royalties=tuple(royalties),
            settlement_charge=prices.settlement_charge,
            issued_at=now,
            expires_at=min(now + self._desk.options.quote_s, until),
        )
        domain = self._desk.house.domain
        return OpenQuote(
            quote.sign(domain, self._desk.key),
            Digest(quote.digest(domain)),
            pipeline,
            RoyaltySchedule.quoted(pipeline, quote),
            pipeline.pack(),
        )
