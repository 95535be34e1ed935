"""What comes to the door and what leaves it: bytes in, an admitted request or a refusal out. Frozen values only."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.pipeline import Pipeline
from ..protocol.pricing import ComputeRates, RoyaltySchedule
from ..protocol.structs import Quote, Request, Voucher


@dataclass(frozen=True)
class Knock:
    """A request as it arrived: packed structs and the exact body, from an authenticated peer."""

    request: bytes
    """A packed, signed Request."""
    pipeline: bytes
    """A packed Pipeline."""
    body: bytes
    voucher: bytes = b""
    """A packed, signed opening Voucher, or nothing."""
    peer: str = ""
    """Whom the peer's allowance is counted for: a peer id."""
    ip: str | None = None
    """The peer's IP address; None behind a relay."""


@dataclass(frozen=True)
class House:
    """What the door belongs to. `other_domains` are looked at only to tell a payer that it signed for another chain."""

    domain: Domain
    node: bytes
    max_body_bytes: int = 1 << 20
    other_domains: tuple[Domain, ...] = ()


@dataclass(frozen=True)
class OpenQuote:
    """A quote that this node gave and still honours."""

    signed: Signed[Quote]
    digest: Digest
    pipeline: Pipeline
    schedule: RoyaltySchedule
    packed: bytes = b""
    """The packed pipeline: a request that carries the same bytes names the same pipeline."""

    @property
    def quote(self) -> Quote:
        """The quote's value."""
        return self.signed.value

    @property
    def rates(self) -> ComputeRates:
        """The node's price in it."""
        return ComputeRates(self.quote.input_rate, self.quote.output_rate)


@dataclass(frozen=True)
class Claim:
    """A request that names itself but is too old to be admitted: it may still ask for what it got before."""

    request: Signed[Request]
    digest: Digest


@dataclass(frozen=True)
class Refusal:
    """Why not. `claim` is set where the request was merely late: whoever remembers it may answer instead."""

    code: ErrorCode
    message: str | None = None
    retry_after_ms: int | None = None
    claim: Claim | None = None

    @classmethod
    def of(cls, error: OpenLoraError) -> Refusal:
        """An error of the protocol as a refusal."""
        return cls(error.code, error.message, error.retry_after_ms)

    def error(self, alternatives: tuple[bytes, ...] = ()) -> OpenLoraError:
        """The error to send."""
        return OpenLoraError(self.code, self.message, retry_after_ms=self.retry_after_ms, alternatives=alternatives)


@dataclass(frozen=True)
class Visitor:
    """A request whose bytes, times, quote and signature are right. What it may do is not judged yet."""

    request: Signed[Request]
    digest: Digest
    signer: Address
    pipeline: Pipeline
    quote: OpenQuote
    body: bytes
    opening: Signed[Voucher] | None
    """Signed by the request's signer, over the request's ledger."""

    @property
    def payer(self) -> bytes:
        """Who pays."""
        return self.request.value.payer


@dataclass(frozen=True)
class Admitted:
    """The request may enter, if the journal can reserve `reserve` wei for it."""

    visitor: Visitor
    reserve: int
    prompt_tokens: int
    tokens_per_choice: int
