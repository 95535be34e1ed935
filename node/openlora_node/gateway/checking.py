"""A receipt held against what was asked and what arrived: the payer pays what it saw, not what it is told. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pipeline import WEIGHT_ONE
from ..protocol.pricing import TOKENS_PER_RATE, Tally
from ..protocol.structs import CLOCK_SKEW_S, Receipt, ReceiptStatus, Request
from .offers import Offer


@dataclass(frozen=True)
class Expected:
    """What a receipt must say. `completion_tokens` and `output` are None where nothing is known of the output."""

    request: Request
    request_digest: bytes
    offer: Offer
    prompt_tokens: int
    completion_tokens: int | None
    output: bytes | None
    keys: frozenset[bytes]
    """Addresses that may have signed it: the node's keys, now and when it quoted."""
    now: int
    least_seq: int = 0
    """The receipt of a request sent after another's receipt came follows that one."""
    charge_due: bool = True
    """Whether the ledger's settlement charge may be in it."""
    most_tokens: int | None = None
    """Where the output is unknown: the most generated tokens that are paid for all the same."""


@dataclass(frozen=True)
class Checked:
    """A receipt that holds."""

    receipt: Signed[Receipt]
    charged: bool
    """Whether it holds the settlement charge."""

    @property
    def fee(self) -> int:
        """Compute and royalties in wei."""
        return self.receipt.value.fee


def check_receipt(signed: Signed[Receipt], expected: Expected, domain: Domain) -> Checked:
    """A receipt that may be paid. Raises RECEIPT_INVALID naming what does not hold."""
    receipt, request = signed.value, expected.request
    if signed.signer(domain) not in expected.keys:
        raise refused("it is not signed by the node's key")
    if receipt.request_digest != expected.request_digest:
        raise refused("it is for another request")
    if (receipt.payer, receipt.node, receipt.pipeline_id) != (request.payer, request.node, request.pipeline_id):
        raise refused("it names another payer, node or pipeline")
    if receipt.seq < expected.least_seq:
        raise refused("its number is not past that of an earlier receipt")
    if not request.issued_at - CLOCK_SKEW_S <= receipt.finished_at <= expected.now + CLOCK_SKEW_S:
        raise refused("it was not finished between the request and now")
    if receipt.status == ReceiptStatus.FAILED:
        return Checked(signed, charged=False)
    _check_output(receipt, expected)
    return Checked(signed, charged=_check_price(receipt, expected))


def _check_output(receipt: Receipt, expected: Expected) -> None:
    if receipt.prompt_tokens != expected.prompt_tokens:
        raise refused(f"it counts {receipt.prompt_tokens} prompt tokens, we count {expected.prompt_tokens}")
    if receipt.completion_tokens > expected.request.max_tokens:
        raise refused("it counts more tokens than were asked for")
    if expected.completion_tokens is not None and receipt.completion_tokens != expected.completion_tokens:
        raise refused(f"it counts {receipt.completion_tokens} generated tokens, {expected.completion_tokens} came")
    if expected.output is not None and receipt.output_hash != expected.output:
        raise refused("its output hash is not that of the tokens that came")
    if expected.most_tokens is not None and receipt.completion_tokens > expected.most_tokens:
        raise refused("it counts more tokens than can have been sent unpaid")


def _check_price(receipt: Receipt, expected: Expected) -> bool:
    """Whether the settlement charge is in it. Each part may be a wei more or less than its own rounding gives."""
    offer, request = expected.offer, expected.request
    micro = offer.rates.micro_wei(receipt.prompt_tokens, receipt.completion_tokens)
    royalties = receipt.tokens * sum(offer.schedule.numerators)
    if not _is_rounded(receipt.royalties, royalties, WEIGHT_ONE * TOKENS_PER_RATE):
        raise refused("its royalties are not those of the quote")
    if receipt.fee > request.max_fee:
        raise refused("it costs more than maxFee")
    if _is_rounded(receipt.compute, micro, TOKENS_PER_RATE):
        return False
    charge = offer.quote.settlement_charge
    if expected.charge_due and charge and _is_rounded(receipt.compute - charge, micro, TOKENS_PER_RATE):
        return True
    raise refused("its compute is not what the quote's prices come to")


def _is_rounded(amount: int, numerator: int, denominator: int) -> bool:
    """Whether `amount` is the quotient, rounded up or down: the node rounds running sums, not single responses."""
    return numerator // denominator <= amount <= -(-numerator // denominator)


def grown(before: Tally, receipt: Receipt, offer: Offer, *, charged: bool) -> Tally:
    """The ledger's tally after a checked receipt: exact below a wei, but never off from what the receipt states.

    Receipts of one ledger may come in another order than the node's sums; then rounding moves a wei from one to another
    and this tally follows the receipts.
    """
    if receipt.status == ReceiptStatus.FAILED:
        return before
    micro = offer.rates.micro_wei(receipt.prompt_tokens, receipt.completion_tokens)
    micro += offer.quote.settlement_charge * TOKENS_PER_RATE if charged else 0
    least = (before.compute + receipt.compute) * TOKENS_PER_RATE
    exact = before.compute_micro_wei + micro
    return Tally(before.tokens + receipt.tokens, min(max(exact, least), least + TOKENS_PER_RATE - 1))


def refused(reason: str) -> OpenLoraError:
    """RECEIPT_INVALID with its reason."""
    return OpenLoraError(ErrorCode.RECEIPT_INVALID, f"the receipt is refused: {reason}")
