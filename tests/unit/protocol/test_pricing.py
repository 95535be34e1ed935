"""Pricing: exact against rational arithmetic, rounding only on cumulative amounts, never more than maxFee."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import (
    MAX_ROYALTY_RATE,
    MAX_WEI,
    Charge,
    ComputeRates,
    RoyaltySchedule,
    Tally,
    charge,
    max_fee,
)
from openlora_node.protocol.structs import Quote, Royalty, Voucher
from support.strategies import pipelines

rates = st.integers(0, 10**24)
counts = st.integers(0, 10**7)
prices = st.builds(ComputeRates, rates, rates)


tallies = st.builds(Tally, st.integers(0, 10**12), st.integers(0, 10**24))


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
    exact = Fraction(base) + sum(
        rate * min(Fraction(abs(adapter.weight), 10_000), 1)
        for rate, adapter in zip(adapters, pipeline.adapters, strict=True)
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


@given(made=schedules(), price=prices, prompt=counts, limit=counts, used=st.integers(0, 10**7), before=tallies)
def test_no_response_costs_more_than_max_fee_whatever_came_before(
    made: tuple[Pipeline, RoyaltySchedule, list[int]],
    price: ComputeRates,
    prompt: int,
    limit: int,
    used: int,
    before: Tally,
) -> None:
    most = max_fee(made[1], price, prompt, limit, settlement_charge=5)
    actual = charge(before, made[1], price, prompt, min(used, limit), settlement_charge=5)
    assert 0 <= actual.fee <= most


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


@pytest.mark.parametrize(("weight", "royalties"), [(500, 3), (-5_000, 30), (10_000, 60), (-20_000, 60)])
def test_an_adapter_earns_its_rate_at_weight_one_and_above(weight: int, royalties: int) -> None:
    pipeline = Pipeline.of(bytes(32), Adapter(id=b"\1" * 32, terms_version=1, weight=weight))
    assert RoyaltySchedule.of(pipeline, 0, (3_000_000,)).royalties(20) == royalties


@given(weight=st.sampled_from([500, -10_000, 2_147_483_500]), rate=rates)
def test_an_adapter_added_to_the_mix_dilutes_nobody(weight: int, rate: int) -> None:
    real = Adapter(id=b"\1" * 32, terms_version=1, weight=10_000)
    dummies = [Adapter(id=bytes((n,)) * 32, terms_version=0, weight=weight) for n in (2, 3, 4)]
    alone = RoyaltySchedule.of(Pipeline.of(bytes(32), real), 7, (rate,))
    mixed = RoyaltySchedule.of(Pipeline.of(bytes(32), real, *dummies), 7, (rate, 0, 0, 0))
    assert mixed.royalties(10**9) == alone.royalties(10**9)
    assert mixed.shares(10**30)[:2] == alone.shares(10**30)


def test_products_stay_within_256_bits_at_the_largest_rates() -> None:
    adapters = [Adapter(id=bytes((n,)) * 32, terms_version=1, weight=2_147_483_500) for n in range(1, 5)]
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32), *adapters), MAX_ROYALTY_RATE, (MAX_ROYALTY_RATE,) * 4)
    assert (MAX_WEI * max(schedule.numerators)).bit_length() <= 256
    assert ((2**64 - 1) * sum(schedule.numerators)).bit_length() <= 256


voucher = st.builds(
    Voucher,
    payer=st.just(bytes(20)),
    node=st.just(bytes(32)),
    pipeline_id=st.just(bytes(32)),
    cumulative_tokens=st.integers(0, 10**12),
    cumulative_compute=st.integers(0, 10**18),
    reference_digest=st.just(bytes(32)),
)


@given(made=schedules(), tally=tallies, held=voucher)
def test_compute_and_royalties_are_owed_apart(
    made: tuple[Pipeline, RoyaltySchedule, list[int]], tally: Tally, held: Voucher
) -> None:
    schedule = made[1]
    owed = tally.owed(schedule, held)
    assert owed >= max(0, tally.value(schedule) - schedule.value(held))
    assert owed >= tally.compute - held.cumulative_compute
    assert owed >= schedule.royalties(tally.tokens) - schedule.royalties(held.cumulative_tokens)
    paid = held.cumulative_tokens >= tally.tokens and held.cumulative_compute >= tally.compute
    assert not (paid and owed)
    assert tally.owed(schedule, None) == tally.value(schedule)


def test_a_quote_prices_only_its_own_pipeline() -> None:
    base, first, second = (bytes((n,)) * 32 for n in (1, 2, 3))
    pipeline = Pipeline.of(base, Adapter(id=first, terms_version=4, weight=10_000), base_terms_version=2)
    listed = [
        Royalty(artifact=base, terms_version=2, rate=5, owner=bytes(20)),
        Royalty(artifact=first, terms_version=4, rate=7, owner=bytes(20)),
    ]
    quote = Quote(
        payer=bytes(20), node=bytes(32), pipeline_id=pipeline.id, input_rate=0, output_rate=0,
        royalties=tuple(listed), settlement_charge=0, issued_at=0, expires_at=60,
    )  # fmt: skip
    assert RoyaltySchedule.quoted(pipeline, quote) == RoyaltySchedule.of(pipeline, 5, (7,))
    wrong = [
        {"royalties": (listed[1], listed[0])},
        {"royalties": (listed[0],)},
        {"royalties": (listed[0], msgspec.structs.replace(listed[1], terms_version=3))},
        {"royalties": (listed[0], msgspec.structs.replace(listed[1], artifact=second))},
        {"pipeline_id": bytes(32)},
    ]
    for change in wrong:
        with pytest.raises(ProtocolError) as caught:
            RoyaltySchedule.quoted(pipeline, msgspec.structs.replace(quote, **change))
        assert caught.value.code == ErrorCode.BAD_PIPELINE


def test_settlement_charge_is_compute_and_due_once() -> None:
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32)), 0)
    first = charge(Tally(), schedule, ComputeRates(1, 1), 0, 1, settlement_charge=10**12)
    assert (first.compute, first.royalties) == (10**12, 0)
    second = charge(first.after, schedule, ComputeRates(1, 1), 0, 10**6, settlement_charge=10**12)
    assert second.compute == 1


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
    schedule = RoyaltySchedule.of(Pipeline.of(bytes(32)), MAX_ROYALTY_RATE)
    with pytest.raises(ProtocolError):
        RoyaltySchedule.of(Pipeline.of(bytes(32)), MAX_ROYALTY_RATE + 1)
    with pytest.raises(ProtocolError):
        charge(Tally(), schedule, ComputeRates(MAX_WEI, MAX_WEI), 2**40, 2**40)
    with pytest.raises(ProtocolError):
        charge(Tally(), schedule, ComputeRates(MAX_WEI, 0), 10**6, 0)
    with pytest.raises(ProtocolError):
        charge(Tally(2**63 - 1), schedule, ComputeRates(0, 0), 1, 0)
    for prompt, completion in ((-1, 0), (0, -1)):
        with pytest.raises(ProtocolError):
            charge(Tally(), schedule, ComputeRates(0, 0), prompt, completion)
    for tally in ((-1, 0), (0, -1), (2**63, 0), (0, 2**148), (1.5, 0), (True, 0), (0, "1")):
        with pytest.raises(ProtocolError):
            Tally(*tally)
    for prompt, limit, once in ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**63, 0, 0), (10**9, 10**9, MAX_WEI)):
        with pytest.raises(ProtocolError):
            max_fee(schedule, ComputeRates(0, 0), prompt, limit, once)


def test_rates_match_the_pipeline() -> None:
    with pytest.raises(ProtocolError):
        RoyaltySchedule.of(Pipeline.of(bytes(32)), 0, (1,))
