"""The door's second part: may this signed request enter, and can it pay? Pure: the caller looked up what it needs.

Two steps, because the second needs the prompt counted, which costs the engine time that a stranger must not get:
`may_use` judges signer, access and terms; `can_pay` judges length, fee and opening voucher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import format_artifact_id
from ..protocol.pricing import max_fee
from . import vouchers
from .checks import not_signed
from .values import Admitted, House, Refusal, Visitor
from .vouchers import LedgerState, OpenRun


@dataclass(frozen=True)
class PartStanding:
    """What the chain says of one artifact of the pipeline now."""

    artifact: bytes
    may_use: bool
    accepted_until: int
    """Unix seconds until which its terms in the pipeline are honoured."""


@dataclass(frozen=True)
class Standing:
    """What the chain says of the request now: its signer, and its artifacts in pipeline order."""

    may_sign: bool
    parts: Sequence[PartStanding]


@dataclass(frozen=True)
class Purse:
    """What the request is about to cost, and the ledger that pays for it."""

    prompt_tokens: int
    choices: int
    max_tokens_per_choice: int | None
    """As the body asks; None: what the context leaves."""
    max_context: int | None
    """Tokens of prompt and answer; None where only the engine can tell, as for several prompts in one body."""
    ledger: LedgerState
    """Without this request."""
    grace: int = 0
    """Fees of receipts whose closing vouchers are still awaited, in wei."""


def may_use(visitor: Visitor, standing: Standing, house: House, now: int) -> Refusal | None:
    """The signer signs for the payer, the payer may use every artifact, and all terms are still honoured."""
    if not standing.may_sign:
        return not_signed(visitor.request, house)
    for part in standing.parts:
        if not part.may_use:
            return Refusal(ErrorCode.ACCESS_DENIED, f"buy or ask for access to {format_artifact_id(part.artifact)}")
        if part.accepted_until < now:
            return Refusal(
                ErrorCode.QUOTE_EXPIRED,
                f"the terms of {format_artifact_id(part.artifact)} are superseded: ask for a quote of the current ones",
            )
    return None


def can_pay(visitor: Visitor, purse: Purse) -> Admitted | Refusal:
    """The prompt fits, maxFee covers the most it can cost, and the opening voucher covers what is due."""
    per_choice = tokens_per_choice(visitor, purse)
    if isinstance(per_choice, Refusal):
        return per_choice
    request, quote = visitor.request.value, visitor.quote.quote
    try:
        least = max_fee(
            visitor.quote.schedule,
            visitor.quote.rates,
            purse.prompt_tokens,
            request.max_tokens,
            quote.settlement_charge,
        )
    except ProtocolError as error:
        return Refusal.of(error)
    if request.max_fee < least:
        return Refusal(ErrorCode.MAX_FEE_TOO_LOW, f"raise maxFee to {least} wei")
    run = OpenRun(visitor.quote.rates, quote.settlement_charge, purse.prompt_tokens, request.max_tokens)
    opening = visitor.opening.value if visitor.opening else None
    try:
        refusal = vouchers.opens(purse.ledger.with_run(run), opening, purse.grace)
    except ProtocolError as error:
        return Refusal.of(error)
    return refusal or Admitted(visitor, request.max_fee, purse.prompt_tokens, per_choice)


def tokens_per_choice(visitor: Visitor, purse: Purse) -> int | Refusal:
    """How many tokens each choice may have: the body's bound, within maxTokens for all and within the context."""
    asked, share = purse.max_tokens_per_choice, visitor.request.value.max_tokens // purse.choices
    if share == 0 and asked != 0:
        return Refusal(
            ErrorCode.MALFORMED, f"maxTokens bounds all choices together: sign {purse.choices} or more for this body"
        )
    if purse.max_context is None:
        return share if asked is None else min(share, asked)
    left = purse.max_context - purse.prompt_tokens
    if left < 0 or (left == 0 and asked != 0):
        return Refusal(
            ErrorCode.PROMPT_TOO_LONG,
            f"the prompt has {purse.prompt_tokens} tokens of a context of {purse.max_context}: shorten it",
        )
    bound = min(share, left) if asked is None else min(share, asked)
    if bound > left:
        return Refusal(
            ErrorCode.PROMPT_TOO_LONG,
            f"prompt and max_tokens need {purse.prompt_tokens + bound} of {purse.max_context} tokens: ask for {left}",
        )
    return bound
