"""What a response costs, in integers: compute at the node's rates, royalties at the artifacts' rates.

Rates are wei per 1,000,000 tokens, so tokens × rate counts micro-wei. Amounts are rounded down once, on the cumulative
value of one ledger (payer, signer, node, pipeline); a response costs the difference of two cumulative values. Hence
many small responses cost what one large one costs, and the contract derives royalties from cumulative tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ErrorCode, ProtocolError
from .pipeline import WEIGHT_ONE, Pipeline
from .structs import MAX_CUMULATIVE_TOKENS, Quote, Receipt, Voucher

TOKENS_PER_RATE = 1_000_000
MAX_WEI = (1 << 128) - 1
MAX_ROYALTY_RATE = (1 << 96) - 1
"""Keeps every product of the share formula within 256 bits, so no co-owner's rate can block another's harvest."""


@dataclass(frozen=True)
class ComputeRates:
    """A node's signed price: wei per 1,000,000 prompt tokens and per 1,000,000 generated tokens."""

    input_rate: int
    output_rate: int

    def __post_init__(self) -> None:
        _check(self.input_rate, MAX_WEI)
        _check(self.output_rate, MAX_WEI)

    def micro_wei(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Compute for these tokens, in 10⁻⁶ wei, exact."""
        return prompt_tokens * self.input_rate + completion_tokens * self.output_rate


@dataclass(frozen=True)
class RoyaltySchedule:
    """How a pipeline's royalties grow with tokens and how they divide among its artifacts.

    royalties(T) = ⌊T · Σ numerators / (10,000 · 1,000,000)⌋. The base's numerator is rate · 10,000, adapter i's is
    rateᵢ · min(|wᵢ|, 10,000): an adapter earns its rate at weight 1 and above, the fraction below. No part depends on
    another, so an adapter added to the mix dilutes nobody.
    """

    numerators: tuple[int, ...]
    """Base first, then the adapters in pipeline order."""

    @classmethod
    def of(cls, pipeline: Pipeline, base_rate: int, adapter_rates: tuple[int, ...] = ()) -> RoyaltySchedule:
        """The schedule of `pipeline` at these rates, `adapter_rates` in pipeline order. Raises BAD_AMOUNT."""
        if len(adapter_rates) != len(pipeline.adapters):
            raise ProtocolError(ErrorCode.BAD_AMOUNT, "give one rate for each adapter of the pipeline")
        for rate in (base_rate, *adapter_rates):
            _check(rate, MAX_ROYALTY_RATE)
        weights = (WEIGHT_ONE, *(min(abs(adapter.weight), WEIGHT_ONE) for adapter in pipeline.adapters))
        return cls(tuple(rate * weight for rate, weight in zip((base_rate, *adapter_rates), weights, strict=True)))

    @classmethod
    def quoted(cls, pipeline: Pipeline, quote: Quote) -> RoyaltySchedule:
        """The schedule that a quote states. Raises BAD_PIPELINE unless it lists exactly the pipeline's artifacts."""
        listed = [(royalty.artifact, royalty.terms_version) for royalty in quote.royalties]
        parts = [(adapter.id, adapter.terms_version) for adapter in pipeline.adapters]
        if quote.pipeline_id != pipeline.id or listed != [(pipeline.base, pipeline.base_terms_version), *parts]:
            raise ProtocolError(ErrorCode.BAD_PIPELINE, "the quote lists other artifacts or terms than the pipeline")
        base, *adapters = (royalty.rate for royalty in quote.royalties)
        return cls.of(pipeline, base, tuple(adapters))

    def royalties(self, tokens: int) -> int:
        """Cumulative royalties in wei after `tokens` cumulative tokens, rounded down."""
        return tokens * sum(self.numerators) // (WEIGHT_ONE * TOKENS_PER_RATE)

    def shares(self, amount: int) -> tuple[int, ...]:
        """`amount` wei of cumulative royalties divided among the artifacts, each rounded down; dust stays undivided."""
        total = sum(self.numerators)
        return tuple(amount * numerator // total if total else 0 for numerator in self.numerators)

    def value(self, voucher: Voucher) -> int:
        """What a voucher is worth in wei: its compute and the royalties of its tokens."""
        return voucher.cumulative_compute + self.royalties(voucher.cumulative_tokens)


@dataclass(frozen=True)
class Tally:
    """Everything charged so far to one ledger. Both amounts only grow."""

    tokens: int = 0
    """Prompt and completion tokens."""
    compute_micro_wei: int = 0
    """Compute and settlement charge, in 10⁻⁶ wei, exact."""

    def __post_init__(self) -> None:
        _check(self.tokens, MAX_CUMULATIVE_TOKENS)
        _check(self.compute_micro_wei, MAX_WEI * TOKENS_PER_RATE)

    @property
    def compute(self) -> int:
        """Cumulative compute in wei, rounded down: a voucher's `cumulative_compute`."""
        return self.compute_micro_wei // TOKENS_PER_RATE

    def value(self, schedule: RoyaltySchedule) -> int:
        """Compute and royalties in wei."""
        return self.compute + schedule.royalties(self.tokens)

    def owed(self, schedule: RoyaltySchedule, voucher: Voucher | None) -> int:
        """What `voucher`, the newest of the ledger, leaves unpaid, in wei.

        Compute and royalties are judged apart: royalties may flow back to the payer, so too many tokens must not make
        up for too little compute, nor the reverse.
        """
        tokens, compute = (voucher.cumulative_tokens, voucher.cumulative_compute) if voucher else (0, 0)
        royalties = schedule.royalties(self.tokens) - schedule.royalties(tokens)
        return max(0, self.compute - compute) + max(0, royalties)


@dataclass(frozen=True)
class Charge:
    """What one response costs, and the tally after it."""

    compute: int
    royalties: int
    after: Tally

    @property
    def fee(self) -> int:
        """Compute and royalties, in wei."""
        return self.compute + self.royalties

    def is_stated_by(self, receipt: Receipt) -> bool:
        """Whether a receipt asks exactly this."""
        return (receipt.compute, receipt.royalties) == (self.compute, self.royalties)


def charge(
    before: Tally,
    schedule: RoyaltySchedule,
    rates: ComputeRates,
    prompt_tokens: int,
    completion_tokens: int,
    settlement_charge: int = 0,
) -> Charge:
    """The cost of one response on top of `before`. Raises ProtocolError BAD_AMOUNT beyond 2^128 wei.

    `settlement_charge` (wei) counts as compute and is due while `before` holds no compute yet.
    """
    _check(prompt_tokens, MAX_CUMULATIVE_TOKENS)
    _check(completion_tokens, MAX_CUMULATIVE_TOKENS)
    _check(settlement_charge, MAX_WEI)
    once = 0 if before.compute_micro_wei else settlement_charge * TOKENS_PER_RATE
    micro = rates.micro_wei(prompt_tokens, completion_tokens) + once
    after = Tally(before.tokens + prompt_tokens + completion_tokens, before.compute_micro_wei + micro)
    _check(after.value(schedule), MAX_WEI)
    return Charge(
        compute=after.compute - before.compute,
        royalties=schedule.royalties(after.tokens) - schedule.royalties(before.tokens),
        after=after,
    )


def max_fee(
    schedule: RoyaltySchedule,
    rates: ComputeRates,
    prompt_tokens: int,
    max_tokens: int,
    settlement_charge: int = 0,
) -> int:
    """The most that a response can cost, whatever else the ledger is charged meanwhile: the least maxFee to accept.

    Both parts are rounded up: where a response falls in the running sums decides a wei of each.
    """
    _check(prompt_tokens, MAX_CUMULATIVE_TOKENS)
    _check(max_tokens, MAX_CUMULATIVE_TOKENS)
    _check(settlement_charge, MAX_WEI)
    compute = -(-rates.micro_wei(prompt_tokens, max_tokens) // TOKENS_PER_RATE)
    royalties = -(-(prompt_tokens + max_tokens) * sum(schedule.numerators) // (WEIGHT_ONE * TOKENS_PER_RATE))
    fee = compute + settlement_charge + royalties
    _check(fee, MAX_WEI)
    return fee


def _check(amount: int, most: int) -> None:
    if type(amount) is not int or not 0 <= amount <= most:
        raise ProtocolError(ErrorCode.BAD_AMOUNT, f"this amount is a whole number from 0 to {most}")
