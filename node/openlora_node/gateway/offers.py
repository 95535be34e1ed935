"""A node's quote, held against the registry, the chain and the request before anything is signed for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.pipeline import Pipeline
from ..protocol.pricing import ComputeRates, RoyaltySchedule, max_fee
from ..protocol.structs import CLOCK_SKEW_S, Quote
from .ports import TermsLike

Components = tuple[tuple[bytes, int], ...]
"""(artifact, basis points) of the royalties that an artifact passes on, as its terms on chain have it."""
LEAST_LIFE_S = 5
"""A quote that expires sooner is asked for again."""


@dataclass(frozen=True)
class Offer:
    """A verified quote for a pipeline, ready to compute with."""

    signed: Signed[Quote]
    digest: bytes
    pipeline: Pipeline
    schedule: RoyaltySchedule
    rates: ComputeRates
    components: tuple[Components, ...]
    """Of each part in the quote's order; empty where an offer is only opened again to compute with."""

    @property
    def quote(self) -> Quote:
        """The quote's value."""
        return self.signed.value

    @property
    def node(self) -> bytes:
        """Whose quote it is."""
        return self.signed.value.node

    def is_fresh(self, now: int) -> bool:
        """Whether a request signed now reaches the node while the quote lives."""
        return now + LEAST_LIFE_S < self.quote.expires_at

    def most(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that a request can cost, in wei: its maxFee."""
        return max_fee(self.schedule, self.rates, prompt_tokens, max_tokens, self.quote.settlement_charge)

    def affordable_tokens(self, prompt_tokens: int, wei: int, at_most: int) -> int:
        """How many generated tokens `wei` pays for beside the prompt, up to `at_most`; -1 if not even the prompt."""
        if self.most(prompt_tokens, 0) > wei:
            return -1
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.most(prompt_tokens, middle) <= wei:
                low = middle
            else:
                high = middle - 1
        return low


def pipeline_parts(pipeline: Pipeline) -> tuple[tuple[bytes, int], ...]:
    """(artifact, terms version) of each part, in the order in which a quote lists them."""
    return (
        (pipeline.base, pipeline.base_terms_version),
        *((adapter.id, adapter.terms_version) for adapter in pipeline.adapters),
    )


def verify_quote(
    signed: Signed[Quote],
    *,
    domain: Domain,
    payer: bytes,
    node: bytes,
    node_key: bytes,
    pipeline: Pipeline,
    terms: Sequence[TermsLike],
    now: int,
) -> Offer:
    """A quote that may be signed for. `terms` are the chain's for each part, in the quote's order.

    Raises ProtocolError BAD_SIGNATURE, WRONG_NODE, BAD_PIPELINE, RECEIPT_INVALID (royalties or owners other than the
    chain's) for a node that lies; OpenLoraError QUOTE_EXPIRED, NOT_YET_VALID where clocks may differ.
    """
    quote = signed.value
    digest = quote.digest(domain)
    if signed.signer(domain) != node_key:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the quote is not signed by the node's key in the registry")
    if (quote.payer, quote.node) != (payer, node):
        raise ProtocolError(ErrorCode.WRONG_NODE, "the quote names another payer or node")
    schedule = RoyaltySchedule.quoted(pipeline, quote)
    for royalty, known in zip(quote.royalties, terms, strict=True):
        if (royalty.rate, royalty.owner) != (known.rate, known.owner):
            raise ProtocolError(
                ErrorCode.RECEIPT_INVALID, "the quote's royalties or owners differ from the chain's terms"
            )
    if quote.issued_at > now + CLOCK_SKEW_S:
        raise OpenLoraError(ErrorCode.NOT_YET_VALID, "the quote is dated in the future: compare the clocks")
    if quote.expires_at <= now:
        raise OpenLoraError(ErrorCode.QUOTE_EXPIRED, "the node sent a quote that has expired")
    rates = ComputeRates(quote.input_rate, quote.output_rate)
    return Offer(signed, digest, pipeline, schedule, rates, tuple(known.components for known in terms))


def reopen_offer(quote: bytes, preimage: bytes, domain: Domain, components: tuple[Components, ...] = ()) -> Offer:
    """The offer that a stored request was signed for. Raises ProtocolError for bytes that were never stored."""
    signed, pipeline = Signed.unpack(Quote, quote), Pipeline.unpack(preimage)
    rates = ComputeRates(signed.value.input_rate, signed.value.output_rate)
    schedule = RoyaltySchedule.quoted(pipeline, signed.value)
    return Offer(signed, signed.value.digest(domain), pipeline, schedule, rates, components)
