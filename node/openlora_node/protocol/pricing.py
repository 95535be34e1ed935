"""What a response costs, in integers: compute at the node's rates, royalties at the artifacts' rates.

Rates are wei per 1,000,000 tokens, so tokens × rate counts micro-wei. Amounts are rounded down once, on the cumulative
value of one (payer, signer, node, pipeline); a response costs the difference of two cumulative values. Hence many small
responses cost what one large one costs, and the contract derives the same royalties from cumulative tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ErrorCode, ProtocolError
from .pipeline import Pipeline

TOKENS_PER_RATE = 1_000_000
MAX_WEI = (1 << 128) - 1
MAX_TOKENS = (1 << 64) - 1


@dataclass(frozen=True)
class ComputeRates:
    """A node's signed price: wei per 1,000,000 prompt tokens and per 1,000,000 generated tokens."""

    input_rate: int
    output_rate: int

    def __post_init__(self) -> None:
        _check_wei(self.input_rate)
        _check_wei(self.output_rate)

    def micro_wei(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Compute for these tokens, in 10⁻⁶ wei, exact."""
        return prompt_tokens * self.input_rate + completion_tokens * self.output_rate


@dataclass(frozen=True)
class RoyaltySchedule:
    """How a pipeline's royalties grow with tokens and how they divide among its artifacts.

    royalties(T) = ⌊T · Σ numerators / denominator⌋. With W = Σ|wᵢ| (1 without adapters) the base's numerator is
    rate · W, adapter i's is rateᵢ · |wᵢ|, and the denominator is W · 1,000,000.
    """

    numerators: tuple[int, ...]
    """Base first, then the adapters in pipeline order."""
    denominator: int

    @classmethod
    def of(cls, pipeline: Pipeline, base_rate: int, adapter_rates: tuple[int, ...] = ()) -> RoyaltySchedule:
        """The schedule of `pipeline` at these rates, `adapter_rates` in pipeline order. Raises BAD_AMOUNT."""
        if len(adapter_rates) != len(pipeline.adapters):
            raise ProtocolError(ErrorCode.BAD_AMOUNT, "give one rate for each adapter of the pipeline")
        for rate in (base_rate, *adapter_rates):
            _check_wei(rate)
        weights = [abs(adapter.weight) for adapter in pipeline.adapters]
        total = sum(weights) or 1
        numerators = (base_rate * total, *(rate * weight for rate, weight in zip(adapter_rates, weights, strict=True)))
        return cls(numerators, total * TOKENS_PER_RATE)

    def royalties(self, tokens: int) -> int:
        """Cumulative royalties in wei after `tokens` cumulative tokens, rounded down."""
        return tokens * sum(self.numerators) // self.denominator

    def shares(self, amount: int) -> tuple[int, ...]:
        """`amount` wei of cumulative royalties divided among the artifacts, each rounded down; dust stays undivided."""
        total = sum(self.numerators)
        return tuple(amount * numerator // total if total else 0 for numerator in self.numerators)


@dataclass(frozen=True)
class Tally:
    """Everything charged so far to one (payer, signer, node, pipeline). Both amounts only grow."""

    tokens: int = 0
    """Prompt and completion tokens."""
    compute_micro_wei: int = 0
    """Compute and settlement charge, in 10⁻⁶ wei, exact."""

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= MAX_TOKENS:
            raise ProtocolError(ErrorCode.BAD_AMOUNT, "cumulative tokens are whole and below 2^64")
        if self.compute_micro_wei < 0:
            raise ProtocolError(ErrorCode.BAD_AMOUNT)
        _check_wei(self.compute)

    @property
    def compute(self) -> int:
        """Cumulative compute in wei, rounded down: a voucher's `cumulative_compute`."""
        return self.compute_micro_wei // TOKENS_PER_RATE

    def value(self, schedule: RoyaltySchedule) -> int:
        """Compute and royalties in wei: what a voucher for this tally is worth."""
        return self.compute + schedule.royalties(self.tokens)


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


def charge(
    before: Tally,
    schedule: RoyaltySchedule,
    rates: ComputeRates,
    prompt_tokens: int,
    completion_tokens: int,
    settlement_charge: int = 0,
) -> Charge:
    """The cost of one response on top of `before`.

    `settlement_charge` (wei) counts as compute. With `completion_tokens` at the request's maxTokens this is the most
    that a response can cost: the least `maxFee` that a node accepts. Raises ProtocolError BAD_AMOUNT beyond 2^128 wei.
    """
    if prompt_tokens < 0 or completion_tokens < 0:
        raise ProtocolError(ErrorCode.BAD_AMOUNT, "token counts are not negative")
    _check_wei(settlement_charge)
    micro = rates.micro_wei(prompt_tokens, completion_tokens) + settlement_charge * TOKENS_PER_RATE
    after = Tally(before.tokens + prompt_tokens + completion_tokens, before.compute_micro_wei + micro)
    result = Charge(
        compute=after.compute - before.compute,
        royalties=schedule.royalties(after.tokens) - schedule.royalties(before.tokens),
        after=after,
    )
    _check_wei(after.value(schedule))
    return result


def _check_wei(amount: int) -> None:
    if type(amount) is not int or not 0 <= amount <= MAX_WEI:
        raise ProtocolError(ErrorCode.BAD_AMOUNT)
