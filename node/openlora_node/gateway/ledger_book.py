"""What one ledger comes to while requests run in it side by side, and what the next voucher must say. Pure.

A ledger is what this signer owes one node for one pipeline. The voucher that is given next covers everything that was
counted here: receipts kept, and of each open request the prompt and the tokens that came. It never covers more than
that, whatever a node demands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol.pricing import TOKENS_PER_RATE, ComputeRates, RoyaltySchedule
from .offers import Offer


@dataclass(frozen=True)
class Amounts:
    """Cumulative tokens and compute in wei: the two numbers of a voucher."""

    tokens: int = 0
    compute: int = 0

    def covers(self, other: Amounts) -> bool:
        """Whether both amounts reach the other's."""
        return self.tokens >= other.tokens and self.compute >= other.compute

    def joined(self, other: Amounts) -> Amounts:
        """The larger of each amount: a voucher only grows."""
        return Amounts(max(self.tokens, other.tokens), max(self.compute, other.compute))

    def worth(self, schedule: RoyaltySchedule) -> int:
        """Compute and the royalties of the tokens, in wei."""
        return self.compute + schedule.royalties(self.tokens)


@dataclass
class OpenRequest:
    """A request without a kept receipt: what it has used so far, by our own count."""

    prompt_tokens: int
    rates: ComputeRates
    settlement_charge: int
    accepted: bool = False
    """Whether the node said that it took it: only then may vouchers of others count it."""
    generated: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and generated tokens."""
        return self.prompt_tokens + self.generated

    @property
    def micro_wei(self) -> int:
        """Compute so far, in 10⁻⁶ wei."""
        return self.rates.micro_wei(self.prompt_tokens, self.generated)


@dataclass
class LedgerBook:
    """One ledger with its open requests, by request digest."""

    schedule: RoyaltySchedule
    committed: Amounts = Amounts()
    """Baseline and kept receipts."""
    remainder_micro_wei: int = 0
    """What the kept receipts' compute holds below a whole wei."""
    voucher: Amounts = Amounts()
    """The newest voucher that the node holds, as far as we know."""
    charge_due: bool = True
    """Whether no kept receipt held the settlement charge yet."""
    requests: dict[bytes, OpenRequest] = field(default_factory=dict)

    def open(self, digest: bytes, offer: Offer, prompt_tokens: int) -> None:
        """A request is about to be sent: its prompt counts from now on."""
        self.requests[digest] = OpenRequest(prompt_tokens, offer.rates, offer.quote.settlement_charge)

    def accept(self, digest: bytes) -> None:
        """The node took the request."""
        self.requests[digest].accepted = True

    def generated(self, digest: bytes, tokens: int) -> None:
        """So many tokens have come for a request in all."""
        if request := self.requests.get(digest):
            request.generated = tokens

    def close(self, digest: bytes) -> None:
        """The request is settled or given up: it counts no longer by itself."""
        self.requests.pop(digest, None)

    def accrued(self, own: bytes | None = None) -> Amounts:
        """Everything counted so far, of requests that the node took and of `own`: the most that any voucher says."""
        counted = [request for digest, request in self.requests.items() if request.accepted or digest == own]
        if not counted:
            return self.committed
        micro = self.remainder_micro_wei + sum(request.micro_wei for request in counted)
        charge = max(request.settlement_charge for request in counted) if self.charge_due else 0
        # Rounded up: where each response falls in the node's own sums decides a wei.
        compute = self.committed.compute + charge + -(-micro // TOKENS_PER_RATE)
        return Amounts(self.committed.tokens + sum(request.tokens for request in counted), compute)

    def next_voucher(self, own: bytes | None = None) -> Amounts:
        """The amounts of the voucher to give now; `own` is a request that is about to be sent with it."""
        return self.voucher.joined(self.accrued(own))

    def worth(self, amounts: Amounts) -> int:
        """What a voucher of these amounts is worth, in wei."""
        return amounts.worth(self.schedule)
