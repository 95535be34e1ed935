"""The slot pool: LRU, pins, reservations, refusals; and random use against its own accounts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_engine.errors import Code, EngineError
from openlora_engine.scheduling import SlotPool
from support.engine_scheduling import FakeHost, FakeLoader


def pool(num_slots: int = 2) -> SlotPool:
    return SlotPool(num_slots, FakeLoader(hosted()))


def hosted() -> FakeHost:
    host = FakeHost()
    host.ready = dict.fromkeys("abcdef")
    return host


def test_the_least_recently_used_unreferenced_adapter_leaves() -> None:
    slots = pool(2)
    assert slots.acquire("a") == 0
    assert slots.acquire("b") == 1
    assert slots.acquire("c") is None
    slots.release("b")
    slots.release("a")
    assert slots.acquire("b") == 1
    slots.release("b")
    assert slots.acquire("c") == 0
    assert list(slots) == ["b", "c"]
    assert (slots.num_loads, slots.num_evictions) == (3, 1)
    slots.check_integrity()


def test_sequences_of_one_adapter_share_its_slot() -> None:
    slots = pool(1)
    assert slots.acquire("a") == slots.acquire("a") == 0
    slots.release("a")
    assert not slots.can_acquire("b")
    slots.release("a")
    assert slots.can_acquire("b")


def test_a_running_adapter_is_not_evicted() -> None:
    slots = pool()
    slots.acquire("a")
    with pytest.raises(EngineError, match="1 running") as refusal:
        slots.evict("a")
    assert refusal.value.code is Code.ADAPTER_IN_USE
    slots.release("a")
    slots.evict("a")
    slots.evict("a")
    assert "a" not in slots
    slots.check_integrity()


def test_pins_keep_an_adapter_and_leave_a_slot() -> None:
    slots = pool(2)
    slots.pin("a")
    slots.pin("a")
    with pytest.raises(EngineError, match="--max-loras") as refusal:
        slots.pin("b")
    assert refusal.value.code is Code.BAD_REQUEST
    slots.acquire("a")
    slots.release("a")
    for digest in "bcd":
        slots.acquire(digest)
        slots.release(digest)
    assert set(slots) == {"a", "d"}
    slots.unpin("a")
    slots.acquire("d")
    assert slots.acquire("e") == 0
    slots.check_integrity()


def test_a_reservation_gets_the_victims_slot_and_nobody_else_does() -> None:
    slots = pool(1)
    slots.acquire("a")
    slots.reserve("b", "a")
    assert slots.acquire("a") is None
    assert slots.acquire("b") is None
    slots.release("a")
    assert not slots.has_room
    assert slots.acquire("c") is None
    assert slots.acquire("b") == 0
    assert not slots.reservations
    slots.check_integrity()


def test_a_cancelled_reservation_lets_the_victim_go_on() -> None:
    slots = pool(1)
    slots.acquire("a")
    slots.reserve("b", "a")
    slots.cancel_reservation("b")
    slots.cancel_reservation("b")
    assert slots.acquire("a") == 0
    slots.check_integrity()


def test_a_reservation_takes_another_slot_that_comes_free_first() -> None:
    slots = pool(2)
    slots.acquire("a")
    slots.acquire("b")
    slots.reserve("c", "a")
    slots.release("b")
    assert slots.acquire("c") == 1
    assert slots.acquire("a") == 0
    slots.check_integrity()


def test_a_failed_load_leaves_an_empty_slot() -> None:
    loader = FakeLoader(hosted())
    slots = SlotPool(1, loader)
    slots.acquire("a")
    slots.release("a")
    loader.fails.add("b")
    with pytest.raises(EngineError):
        slots.acquire("b")
    assert not len(slots)
    slots.check_integrity()
    assert slots.acquire("b") == 0


def test_a_slot_may_be_read_once_its_copy_is_done() -> None:
    loader = FakeLoader(hosted(), copies=True)
    slots = SlotPool(1, loader)
    slots.acquire("a")
    assert not slots.is_loaded("a")
    loader.finish_copies()
    assert slots.is_loaded("a")


def test_changes_are_told() -> None:
    slots = pool(1)
    told: list[str] = []
    slots.on_change = told.append
    slots.acquire("a")
    slots.reserve("b", "a")
    slots.release("a")
    told.clear()
    slots.acquire("b")
    assert set(told) == {"a", "b"}


@settings(max_examples=40)
@given(st.integers(0, 4), st.randoms(use_true_random=False))
def test_random_use_keeps_the_accounts(num_slots: int, rng: random.Random) -> None:
    slots, held = SlotPool(num_slots, FakeLoader(hosted())), []
    for _ in range(100):
        digest = rng.choice("abcdef")
        action = rng.choice(("acquire", "acquire", "release", "pin", "unpin", "evict", "reserve", "cancel"))
        if action == "acquire":
            possible = slots.can_acquire(digest)
            slot = slots.acquire(digest)
            assert (slot is not None) == possible
            if slot is not None:
                held.append(digest)
        elif action == "release" and held:
            slots.release(held.pop(rng.randrange(len(held))))
        elif action == "unpin":
            slots.unpin(digest)
        elif action == "cancel":
            slots.cancel_reservation(digest)
        elif action == "reserve":
            victims = [d for d in slots if slots.num_refs(d) and not slots.is_draining(d) and not slots.is_pinned(d)]
            if victims and digest not in slots and not slots.is_reserved(digest):
                slots.reserve(digest, rng.choice(victims))
        elif action in {"pin", "evict"}:
            try:
                getattr(slots, action)(digest)
            except EngineError as error:
                assert error.code is (Code.BAD_REQUEST if action == "pin" else Code.ADAPTER_IN_USE)
        slots.check_integrity()
        assert {d: slots.num_refs(d) for d in "abcdef"} == {d: held.count(d) for d in "abcdef"}
