"""When vouchers go to the chain: urgent ones at once, others when they are worth it, none that the contract refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.chainview import FOREVER
from openlora_node.journal import LedgerKey
from openlora_node.settlement.policy import (
    BATCH_GAS,
    MAX_BATCH,
    MAX_BATCH_GAS,
    VOUCHER_GAS,
    Due,
    Reason,
    Rules,
    choose,
    is_void,
    urgency,
)

NOW = 1_750_000_000
PRICE = 10**9
RULES = Rules()
DAY = 86_400


def due(number: int = 0, value: int = 10**6, **changes: int) -> Due:
    payer = number.to_bytes(20, "big")
    base = Due(LedgerKey(payer, b"\x01" * 32, payer, b"\x02" * 32), value, NOW, 10**30)
    return replace(base, **changes)  # type: ignore[arg-type]


ENOUGH = 20 * (BATCH_GAS + VOUCHER_GAS) * PRICE


def test_it_goes_once_it_is_worth_twenty_times_its_gas() -> None:
    assert choose([due(value=ENOUGH - 1)], RULES, PRICE, NOW) == []
    (batch,) = choose([due(value=ENOUGH)], RULES, PRICE, NOW)
    assert [reason for _, reason in batch.dues] == [Reason.WORTH]
    assert batch.gas == BATCH_GAS + VOUCHER_GAS


def test_what_the_escrow_cannot_pay_is_not_worth_its_gas() -> None:
    assert choose([due(value=ENOUGH, balance=ENOUGH - 1)], RULES, PRICE, NOW) == []


def test_many_share_the_transaction() -> None:
    """Each worth twenty times its own gas, and all together that of the transaction."""
    alone = 20 * VOUCHER_GAS * PRICE
    few = [due(number, alone) for number in range(3)]
    assert choose(few, RULES, PRICE, NOW) == []
    many = [due(number, alone + 20 * BATCH_GAS * PRICE // 10 + 1) for number in range(10)]
    (batch,) = choose(many, RULES, PRICE, NOW)
    assert len(batch.dues) == 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thawing": 1, "thaw_end": NOW + 9}, Reason.THAW),
        ({"terms_until": NOW + 14 * DAY}, Reason.TERMS),
        ({"signer_ends": NOW + 9}, Reason.SIGNER),
        ({"since": NOW - 7 * DAY}, Reason.AGE),
        ({"since": NOW - 7 * DAY + 1}, None),
        ({"balance": 0, "thawing": 0, "since": 0}, None),
        ({"balance": 0, "terms_until": NOW + DAY}, Reason.TERMS),
        ({"terms_until": NOW - 1}, None),
        ({"signer_ends": NOW}, None),
        ({"value": 0, "since": 0}, None),
    ],
)
def test_what_cannot_wait(changes: dict[str, int], reason: Reason | None) -> None:
    one = due(**changes)
    assert urgency(one, RULES, NOW) == reason
    assert [why for batch in choose([one], RULES, PRICE, NOW) for _, why in batch.dues] == ([reason] if reason else [])


def test_those_that_can_wait_ride_along_with_urgent_ones() -> None:
    waits = due(1, 20 * VOUCHER_GAS * PRICE)
    assert choose([waits], RULES, PRICE, NOW) == []
    (batch,) = choose([waits, due(2, thawing=1, thaw_end=NOW + 1)], RULES, PRICE, NOW)
    assert [reason for _, reason in batch.dues] == [Reason.THAW, Reason.WORTH]


def test_the_first_deadline_goes_first_and_a_pipeline_is_registered_once() -> None:
    early = due(1, thawing=1, thaw_end=NOW + 5, unregistered_parts=3)
    late = due(2, thawing=1, thaw_end=NOW + 50, unregistered_parts=3)
    (batch,) = choose([late, early], RULES, PRICE, NOW)
    assert [item for item, _ in batch.dues] == [early, late]
    assert batch.gas == BATCH_GAS + early.gas + due().gas


dues = st.lists(
    st.builds(
        due,
        number=st.integers(0, 10**6),
        value=st.integers(0, 10**17),
        balance=st.sampled_from([0, 10**9, 10**18]),
        thawing=st.sampled_from([0, 0, 5]),
        thaw_end=st.just(NOW + 60),
        terms_until=st.sampled_from([FOREVER, FOREVER, NOW - 1, NOW + 60]),
        signer_ends=st.sampled_from([0, 0, NOW - 1, NOW + 60]),
        since=st.sampled_from([NOW, NOW - 8 * DAY]),
        first=st.booleans(),  # type: ignore[arg-type]
        unregistered_parts=st.integers(0, 5),
    ),
    max_size=250,
    unique_by=lambda one: one.key,
)


@given(dues)
def test_batches_fit_and_leave_out_nothing_urgent_and_nothing_sound_twice(items: list[Due]) -> None:
    batches = choose(items, RULES, PRICE, NOW)
    sent = [one for batch in batches for one, _ in batch.dues]
    assert len(sent) == len({one.key for one in sent})
    for batch in batches:
        assert 0 < len(batch.dues) <= MAX_BATCH
        assert batch.gas <= MAX_BATCH_GAS
        worth = sum(one.payable for one, _ in batch.dues)
        forced = any(reason is not Reason.WORTH for _, reason in batch.dues)
        assert forced or worth >= 20 * batch.gas * PRICE
    for one in items:
        if urgency(one, RULES, NOW):
            assert one in sent
        if is_void(one, NOW):
            assert one not in sent
    for batch in batches:
        for one, reason in batch.dues:
            assert reason is not Reason.WORTH or one.payable >= 20 * one.gas * PRICE
