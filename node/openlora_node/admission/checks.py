"""The door's first part: from bytes to a request that somebody signed. Pure: no clock, no I/O, no chain.

The order of the checks is the order of their cost, so that a stranger buys little of this machine with rubbish: size,
parse, whom it names, pipeline, times, quote, body; then what peer and address may send; then the signature; then what
the signer may send. The first that fails decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..protocol.crypto import SIGNATURE_LENGTH, Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import Digest, format_address
from ..protocol.pipeline import Pipeline
from ..protocol.structs import CLOCK_SKEW_S, Request, Voucher, body_hash
from .rates import Rates
from .values import Claim, House, Knock, OpenQuote, Refusal, Visitor

MAX_PACKED_BYTES = 8_192
"""The longest packed struct of the protocol."""
REQUEST_BYTES = 20 + 32 * 4 + 16 + 8 + 32 + 8 + 8 + SIGNATURE_LENGTH
"""A packed, signed Request has one length."""
VOUCHER_BYTES = 20 + 32 + 32 + 8 + 16 + 32 + SIGNATURE_LENGTH

FindQuote = Callable[[bytes], OpenQuote | None]
"""The quote of a digest, if this node gave it and remembers it."""


@dataclass(frozen=True)
class _Parsed:
    knock: Knock
    request: Signed[Request]
    pipeline: Pipeline
    pipeline_id: bytes
    opening: Signed[Voucher] | None
    quote: OpenQuote | None


@dataclass(frozen=True)
class _World:
    house: House
    now: int


_Check = Callable[[_Parsed, _World], Refusal | None]


def examine(
    knock: Knock, house: House, rates: Rates, find_quote: FindQuote, *, now: int, instant: float
) -> Visitor | Refusal:
    """Judge what arrived at unix second `now`; `instant` are seconds that only grow, for the allowances.

    A refusal for lateness alone (REQUEST_EXPIRED, QUOTE_EXPIRED, QUOTE_UNKNOWN) carries a claim: a request that was
    admitted in time may still ask for its result.
    """
    if refusal := fits_size(knock, house):
        return refusal
    try:
        parsed = parse(knock, find_quote)
    except ProtocolError as error:
        return Refusal.of(error)
    world = _World(house, now)
    for check in CHECKS:
        if refusal := check(parsed, world):
            return refusal
    late = next((refusal for check in LATENESS if (refusal := check(parsed, world))), None)
    if refusal := carries_its_body(parsed, world) or rates.peer(knock.peer, knock.ip, instant):
        return refusal
    digest = Digest(parsed.request.value.digest(house.domain))
    if late is not None:
        return replace(late, claim=Claim(parsed.request, digest))
    return _identify(parsed, world, digest, rates, instant)


def fits_size(knock: Knock, house: House) -> Refusal | None:
    """No part is larger than the protocol or the operator allows."""
    if len(knock.body) > house.max_body_bytes:
        return Refusal(ErrorCode.FRAME_TOO_LARGE, f"the body has {len(knock.body)} bytes: send {house.max_body_bytes}")
    if len(knock.request) != REQUEST_BYTES:
        return Refusal(ErrorCode.MALFORMED, f"a packed, signed request has {REQUEST_BYTES} bytes")
    if knock.voucher and len(knock.voucher) != VOUCHER_BYTES:
        return Refusal(ErrorCode.MALFORMED, f"a packed, signed voucher has {VOUCHER_BYTES} bytes")
    if len(knock.pipeline) > MAX_PACKED_BYTES:
        return Refusal(ErrorCode.FRAME_TOO_LARGE, f"a packed struct has at most {MAX_PACKED_BYTES} bytes")
    return None


def parse(knock: Knock, find_quote: FindQuote) -> _Parsed:
    """The structs. Raises ProtocolError for what does not parse, or is no value that a contract would take."""
    request = Signed.unpack(Request, knock.request)
    quote = find_quote(request.value.quote_digest)
    if quote is not None and knock.pipeline == quote.packed:  # parsed and hashed when it was quoted
        pipeline, pipeline_id = quote.pipeline, quote.quote.pipeline_id
    else:
        pipeline = Pipeline.unpack(knock.pipeline)
        pipeline_id = pipeline.id
    opening = Signed.unpack(Voucher, knock.voucher) if knock.voucher else None
    return _Parsed(knock, request, pipeline, pipeline_id, opening, quote)


def names_this_node(parsed: _Parsed, world: _World) -> Refusal | None:
    """The request is for us."""
    return None if parsed.request.value.node == world.house.node else Refusal(ErrorCode.WRONG_NODE)


def names_its_pipeline(parsed: _Parsed, _: _World) -> Refusal | None:
    """The pipeline beside the request is the one that it signs."""
    if parsed.pipeline_id != parsed.request.value.pipeline_id:
        return Refusal(ErrorCode.BAD_PIPELINE, "the request signs another pipeline than the one beside it")
    return None


def opens_its_ledger(parsed: _Parsed, _: _World) -> Refusal | None:
    """The opening voucher, if there is one, pays for the request's own ledger."""
    if parsed.opening is None:
        return None
    voucher, request = parsed.opening.value, parsed.request.value
    if (voucher.payer, voucher.node, voucher.pipeline_id) == (request.payer, request.node, request.pipeline_id):
        return None
    return Refusal(ErrorCode.VOUCHER_CONFLICT, "the opening voucher names the request's payer, node and pipeline")


def is_not_ahead(parsed: _Parsed, world: _World) -> Refusal | None:
    """Issued no more than 60 s in our future."""
    ahead = parsed.request.value.issued_at - world.now
    if ahead > CLOCK_SKEW_S:
        return Refusal(ErrorCode.NOT_YET_VALID, f"correct your clock: issuedAt lies {ahead} s ahead")
    return None


def is_not_expired(parsed: _Parsed, world: _World) -> Refusal | None:
    """Expired no more than 60 s ago."""
    return Refusal(ErrorCode.REQUEST_EXPIRED) if parsed.request.value.expires_at + CLOCK_SKEW_S < world.now else None


def quote_stands(parsed: _Parsed, world: _World) -> Refusal | None:
    """The quote is ours, for this payer and pipeline, and lives."""
    open_quote, request = parsed.quote, parsed.request.value
    if open_quote is None:
        return Refusal(ErrorCode.QUOTE_UNKNOWN)
    quote = open_quote.quote
    if quote.payer != request.payer or quote.pipeline_id != request.pipeline_id:
        return Refusal(ErrorCode.QUOTE_UNKNOWN, "this quote was given to another payer or for another pipeline")
    return Refusal(ErrorCode.QUOTE_EXPIRED) if quote.expires_at < world.now else None


def carries_its_body(parsed: _Parsed, _: _World) -> Refusal | None:
    """The body is the one that was signed."""
    if body_hash(parsed.knock.body) != parsed.request.value.body_hash:
        return Refusal(ErrorCode.BODY_MISMATCH)
    return None


CHECKS: tuple[_Check, ...] = (names_this_node, names_its_pipeline, opens_its_ledger, is_not_ahead)
LATENESS: tuple[_Check, ...] = (is_not_expired, quote_stands)


def signer_of(claim: Claim, house: House) -> Address | Refusal:
    """Who signed a late request."""
    try:
        return claim.request.signer(house.domain)
    except ProtocolError as error:
        return Refusal.of(error)


def not_signed(request: Signed[Request], house: House) -> Refusal:
    """BAD_SIGNATURE; WRONG_CHAIN where the payer did sign, for a chain or contract that we know and do not serve."""
    for domain in house.other_domains:
        try:
            signer = request.signer(domain)
        except ProtocolError:
            continue
        if signer == request.value.payer:
            return Refusal(
                ErrorCode.WRONG_CHAIN,
                f"this was signed for chain {domain.chain_id}: sign for chain {house.domain.chain_id} and contract"
                f" {format_address(house.domain.verifying_contract)}",
            )
    return Refusal(
        ErrorCode.BAD_SIGNATURE,
        f"neither the payer nor a signer that it authorised signed this for chain {house.domain.chain_id} and contract"
        f" {format_address(house.domain.verifying_contract)}",
    )


def _identify(parsed: _Parsed, world: _World, digest: Digest, rates: Rates, instant: float) -> Visitor | Refusal:
    domain = world.house.domain
    try:
        signer = parsed.request.signer(domain)
        if refusal := rates.signer(signer, instant):
            return refusal
        if parsed.opening is not None and parsed.opening.signer(domain) != signer:
            elsewhere = not_signed(parsed.request, world.house)
            if elsewhere.code is ErrorCode.WRONG_CHAIN:
                return elsewhere
            return Refusal(ErrorCode.BAD_SIGNATURE, "the request's signer signs its opening voucher too")
    except ProtocolError as error:
        return Refusal.of(error)
    assert parsed.quote is not None
    return Visitor(parsed.request, digest, signer, parsed.pipeline, parsed.quote, parsed.knock.body, parsed.opening)
