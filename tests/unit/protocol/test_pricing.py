"""Pricing: exact against rational arithmetic, rounding only on cumulative amounts, never more than maxFee."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import MAX_WEI, Charge, ComputeRates, RoyaltySchedule, Tally, charge
from support.strategies import pipelines

rates = st.integers(0, 10**24)
counts = st.integers(0, 10**7)
prices = st.builds(ComputeRates, rates, rates)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Pipeline, RoyaltySchedule, list[int]]:
    pipeline = draw(pipelines())
    asked = [draw(rates) for _ in range(1 + len(pipeline.adapters))]
    return pipeline, RoyaltySchedule.of(pipeline, asked[0], tuple(asked[1:])), asked


def run(schedule: RoyaltySchedule, price: ComputeRates, steps: list[tuple[int, int]]) -> list[Charge]:
    charges: list[Charge] = []
    tally = Tally()
    for prompt, completion in steps:
        charges.append(charge(tally, schedule, price, prompt, completion))
        tally = charges[-1].after
    return charges


@given(made=schedules(), tokens=counts)
def test_royalties_equal_the_formula(made: tuple[Pipeline, RoyaltySchedule, list[int]], tokens: int) -> None:
    pipeline, schedule, (base, *adapters) = made
    total = sum(abs(adapter.weight) for adapter in pipeline.adapters)
    exact = Fraction(base) + sum(
        Fraction(rate * abs(adapter.weight), total) for rate, adapter in zip(adapters, pipeline.adapters, strict=True)
    )
    assert schedule.royalties(tokens) == floor(tokens * exact / 1_000_000)


@given(made=schedules(), price=prices, steps=st.lists(st.tuples(counts, counts), max_size=12))
def test_many_small_responses_cost_what_one_large_one_costs(
    made: tuple[Pipeline, RoyaltySchedule, list[int]], price: ComputeRates, steps: list[tuple[int, int]]
) -> None:
    schedule = made[1]
    parts = run(schedule, price, steps)
    (whole,) = run(schedule, price, [(sum(p for p, _ in steps), sum(c for _, c in steps))])
    assert sum(part.compute for part in parts) == whole.compute
    assert sum(part.royalties for part in parts) == whole.royalties
    assert sum(part.fee for part in parts) == whole.after.value(schedule)
    exact = Fraction(sum(p * price.input_rate + c * price.output_rate for p, c in steps), 1_000_000)
    assert whole.compute == floor(exact)


@given(made=schedules(), price=prices, prompt=counts, limit=counts, used=st.integers(0, 10**7))
def test_no_response_costs_more_than_the_quote_at_max_tokens(
    made: tuple[Pipeline, RoyaltySchedule, list[int]], price: ComputeRates, prompt: int, limit: int, used: int
) -> None:
    before = Tally(17, 999_999)
    most = charge(before, made[1], price, prompt, limit, settlement_charge=5)
    actual = charge(before, made[1], price, prompt, min(used, limit), settlement_charge=5)
    assert 0 <= actual.fee <= most.fee


@given(made=schedules(), amount=st.integers(0, MAX_WEI))
def test_shares_never_exceed_what_is_shared(made: tuple[Pipeline, RoyaltySchedule, list[int]], amount: int) -> None:
    schedule = made[1]
    shares = schedule.shares(amount)
    assert len(shares) == len(schedule.numerators)
    if any(schedule.numerators):
        assert 0 <= amount - sum(shares) < len(shares)
    else:
        assert not any(shares)


def test_weights_count_by_magnitude() -> None:
    pipeline = Pipeline.of(
        bytes(32),
        Adapter(id=b"\1" * 32, terms_version=1, weight=7_500),
        Adapter(id=b"\2" * 32, terms_version=1, weight=-2_500),
    )
    schedule = RoyaltySchedule.of(pipeline, 1_000_000, (4_000_000, 8_000_000))
    assert schedule.royalties(1) == 1 + 3 + 2
    assert schedule.shares(600) == (100, 300, 200)


def test_one_adapter_pays_its_full_rate_whatever_its_weight() -> None:
    for weight in (500, -20_000):
        pipeline = Pipeline.of(bytes(32), Adapter(id=b"\1" * 32, terms_version=1, weight=weight))
        assert RoyaltySchedule.of(pipeline, 0, (3_000_000,)).royalties(2) == 6


def test_settlement_charge_is_compute() -> None:
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32)), 0)
    first = charge(Tally(), schedule, ComputeRates(1, 1), 0, 1, settlement_charge=10**12)
    assert (first.compute, first.royalties) == (10**12, 0)


@pytest.mark.parametrize("wrong", [-1, MAX_WEI + 1, 1.0, True, "1"])
def test_negative_overflowing_and_odd_amounts_are_refused(wrong: int) -> None:
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32)), 0)
    attempts = (
        lambda: ComputeRates(wrong, 0),
        lambda: ComputeRates(0, wrong),
        lambda: RoyaltySchedule.of(Pipeline.of(bytes(32)), wrong),
        lambda: charge(Tally(), schedule, ComputeRates(0, 0), 0, 0, settlement_charge=wrong),
    )
    for attempt in attempts:
        with pytest.raises(ProtocolError) as caught:
            attempt()
        assert caught.value.code == ErrorCode.BAD_AMOUNT


def test_sums_that_overflow_are_refused() -> None:
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32)), MAX_WEI)
    with pytest.raises(ProtocolError):
        charge(Tally(), schedule, ComputeRates(MAX_WEI, MAX_WEI), 2**40, 2**40)
    with pytest.raises(ProtocolError):
        charge(Tally(), schedule, ComputeRates(MAX_WEI, 0), 10**6, 0)
    with pytest.raises(ProtocolError):
        charge(Tally(2**64 - 1), schedule, ComputeRates(0, 0), 1, 0)
    for prompt, completion in ((-1, 0), (0, -1)):
        with pytest.raises(ProtocolError):
            charge(Tally(), schedule, ComputeRates(0, 0), prompt, completion)
    for tally in ((-1, 0), (0, -1), (2**64, 0)):
        with pytest.raises(ProtocolError):
            Tally(*tally)


def test_rates_match_the_pipeline() -> None:
    with pytest.raises(ProtocolError):
        RoyaltySchedule.of(Pipeline.of(bytes(32)), 0, (1,))
