"""The outbox's pure parts: fees that nodes accept, the decision table, decoded reverts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from openlora_chain.compiled import create_address, error_table
from openlora_chain.fees import Fees, first_fees, raised_fees
from openlora_chain.policy import (
    Abandon,
    Broadcast,
    Include,
    Reorged,
    Replace,
    Rules,
    Settle,
    Sight,
    Wait,
    decide,
    has_gap,
    next_nonce,
    room_for,
)
from openlora_chain.store import Attempt, Inclusion, Intent, IntentState, NewIntent, Order

WEI = st.integers(0, 10**13)
RULES = Rules(confirmations=5)
ATTEMPT = Attempt(7, b"\x01" * 32, b"raw", 21_000, 2 * 10**9, 10**9, signed_at=1_000, signed_block=100)
INTENT = Intent(NewIntent("k", b"s", 1, b"a" * 20, b"b" * 20), 1, IntentState.SENT, 0, 0, 7, (ATTEMPT,))
FOUND = Inclusion(ATTEMPT.hash, 101, b"\x02" * 32, True)
CALM = Sight(now=1_001, head=100, base_fee=10**9, account_nonce=7, settled_nonce=7)


@given(WEI, WEI, st.integers(1, 10**13))
def test_first_fees_stay_within_the_cap(base_fee: int, priority: int, cap: int) -> None:
    fees = first_fees(base_fee, priority, cap)
    assert (fees is None) == (base_fee > cap)
    if fees:
        assert base_fee <= fees.max_fee <= cap
        assert fees.priority <= fees.max_fee


@given(st.tuples(WEI, WEI).map(lambda pair: Fees(max(pair), min(pair))), WEI, WEI, st.integers(1, 10**14))
def test_a_raise_is_one_that_nodes_accept_or_none(previous: Fees, base_fee: int, priority: int, cap: int) -> None:
    fees = raised_fees(previous, base_fee, priority, cap, 20)
    if fees:
        assert fees.max_fee * 10 >= previous.max_fee * 11
        assert fees.priority * 10 >= previous.priority * 11
        assert max(fees.max_fee, fees.priority) <= cap
        assert fees.priority <= fees.max_fee
    else:
        assert cap < max(previous.max_fee * 12 // 10 + 2, previous.priority * 12 // 10 + 2)


def test_twenty_percent_is_rounded_up() -> None:
    assert raised_fees(Fees(101, 11), 1, 1, 10**9, 20) == Fees(122, 14)


MINED = replace(INTENT, state=IntentState.MINED, inclusion=FOUND)
SPENT = replace(CALM, account_nonce=8)
MOVED = replace(FOUND, block_hash=b"\x03" * 32)


@pytest.mark.parametrize(
    ("intent", "inclusion", "sight", "action"),
    [
        (INTENT, None, CALM, Wait()),
        (replace(INTENT, state=IntentState.SIGNED), None, CALM, Broadcast()),
        (INTENT, None, replace(CALM, now=1_060), Replace(cancels=False)),
        (INTENT, None, replace(CALM, head=103), Replace(cancels=False)),
        (INTENT, None, replace(CALM, now=1_060, account_nonce=6), Broadcast()),  # another nonce holds it up
        (INTENT, None, replace(CALM, now=1_060, account_nonce=6, base_fee=3 * 10**9), Replace(cancels=False)),
        (replace(INTENT, attempts=(ATTEMPT,) * 6), None, replace(CALM, now=1_060), Broadcast()),
        (replace(INTENT, order=Order.BUMP), None, CALM, Replace(cancels=False)),
        (replace(INTENT, order=Order.CANCEL), None, CALM, Replace(cancels=True)),
        (replace(INTENT, order=Order.CANCEL, attempts=(replace(ATTEMPT, cancels=True),)), None, CALM, Wait()),
        (INTENT, FOUND, SPENT, Include(FOUND)),
        (MINED, FOUND, replace(SPENT, head=104), Wait()),
        (MINED, FOUND, replace(SPENT, head=105), Settle(FOUND)),
        (MINED, MOVED, replace(SPENT, head=105), Include(MOVED)),
        (MINED, None, CALM, Reorged()),
        (MINED, None, SPENT, Wait()),  # spent at the head only: a reorg may still give the nonce back
        (INTENT, None, SPENT, Wait()),
        (INTENT, None, replace(SPENT, settled_nonce=8), Abandon()),
        (replace(INTENT, order=Order.CANCEL), None, replace(SPENT, settled_nonce=8), Abandon()),
    ],
)  # fmt: skip
def test_the_decision_table(intent: Intent, inclusion: Inclusion | None, sight: Sight, action: object) -> None:
    assert decide(intent, inclusion, sight, RULES) == action


@given(st.integers(0, 50), st.sets(st.integers(0, 60)))
def test_the_next_nonce_is_the_smallest_free_one(account: int, taken: set[int]) -> None:
    holding = [replace(INTENT, nonce=nonce, attempts=(replace(ATTEMPT, nonce=nonce),)) for nonce in taken]
    nonce = next_nonce(account, holding)
    assert nonce not in taken
    assert all(number in taken for number in range(account, nonce))


def test_there_is_always_room_for_who_takes_a_nonce_that_others_wait_for() -> None:
    full = [replace(INTENT, nonce=nonce) for nonce in range(1, 1 + RULES.max_in_flight)]
    assert room_for(1, full, RULES) == 0
    assert room_for(0, full, RULES) == 1
    assert room_for(1, full[:-1], RULES) == 1


def test_a_gap_is_one_only_when_it_lasts() -> None:
    assert not has_gap(replace(CALM, account_nonce=5), [INTENT], RULES)
    assert has_gap(replace(CALM, account_nonce=5, now=1_060), [INTENT], RULES)
    assert not has_gap(replace(CALM, now=1_060), [INTENT], RULES)


def test_reverts_are_named() -> None:
    table = error_table()
    word = encode(["string"], ["paused"])
    assert str(table.explain(bytes.fromhex("08c379a0") + word)) == "Error(paused)"
    assert str(table.explain(bytes.fromhex("4e487b71") + encode(["uint256"], [17]))) == "Panic(17)"
    stale = table.explain(keccak(text="StaleVoucher()")[:4])
    assert (stale.name, stale.permanent) == ("StaleVoucher", True)
    assert not table.explain(keccak(text="EnforcedPause()")[:4]).permanent


@given(st.binary(max_size=200))
def test_any_revert_data_is_explained(data: bytes) -> None:
    revert = error_table().explain(data)
    assert str(revert)
    assert not revert.permanent or len(data) >= 4


def test_create_addresses_are_those_of_the_chain() -> None:
    # The well-known first contract of the account with key 1 … and nonces at the RLP borders.
    import rlp
    from eth_utils.address import to_checksum_address

    for nonce in (0, 1, 127, 128, 255, 256, 70_000):
        expected = keccak(rlp.encode([b"\x11" * 20, nonce]))[12:]
        assert to_checksum_address(create_address(b"\x11" * 20, nonce)) == to_checksum_address(expected)
