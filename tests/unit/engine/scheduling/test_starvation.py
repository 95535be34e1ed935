"""Adapters without a slot: passed over without holding anybody up, and served within a bound."""

from __future__ import annotations

import math

import pytest

from openlora_engine.scheduling import SchedulerConfig, Sequence
from support.engine_scheduling import Machine, Shape, reference, talkative

MAX_WAIT_S = 10.0
PROMPT = {adapter: talkative(2, 60, adapter=adapter) for adapter in "abcdefghijk"}


def machine(num_slots: int, *, seats: int = 8, **shape: int) -> Machine:
    config = SchedulerConfig(
        max_num_seqs=seats,
        max_num_batched_tokens=64,
        max_wait_s=MAX_WAIT_S,
        max_queue=10**4,
        max_queue_per_tenant=10**4,
    )
    return Machine(Shape(num_blocks=512, num_slots=num_slots, **shape), config)


def keep_busy(driver: Machine, adapter: str, count: int, max_tokens: int) -> None:
    """As many live sequences of an adapter, at any time."""
    live = sum(1 for seq in driver.scheduler.live if seq.adapter == adapter)
    for number in range(count - live):
        # Ends that coincide would free the slot by chance.
        length = max_tokens - (number + driver.num_steps) % 3
        driver.add(PROMPT[adapter], adapter=adapter, tenant=f"user of {adapter}", max_tokens=length)


def test_a_full_pool_passes_over_and_never_blocks() -> None:
    driver = machine(2)
    for adapter in "abc":
        driver.add(PROMPT[adapter], adapter=adapter, name=adapter, max_tokens=30)
    driver.add(PROMPT["a"], adapter="a", name="a again", max_tokens=30)
    driver.add([2, 3], name="base", max_tokens=30)
    scheduled = {chunk.seq.request_id for chunk in driver.step().chunks}
    assert scheduled == {"a", "b", "a again", "base"}


def test_the_passed_over_get_the_first_slot_that_comes_free() -> None:
    driver = machine(2)
    driver.add(PROMPT["a"], adapter="a", max_tokens=30)
    driver.add(PROMPT["b"], adapter="b", max_tokens=3)
    waiting = driver.add(PROMPT["c"], adapter="c", max_tokens=3)[0]
    for _ in range(4):
        driver.step()
    assert waiting.first_scheduled_time == 3.0


def test_a_starving_adapter_gets_a_slot_drained() -> None:
    """One slot's adapter ends sooner; it takes no new sequences, and nothing is preempted."""
    driver = machine(2)
    starving = None
    for step in range(60):
        keep_busy(driver, "a", 3, max_tokens=50)
        keep_busy(driver, "b", 3, max_tokens=4)
        if step == 5:
            starving = driver.add(PROMPT["c"], adapter="c", max_tokens=3)[0]
        schedule = driver.step()
        driver.check()
        assert not schedule.preempted
        if starving is not None and starving.first_scheduled_time is not None:
            break
    assert starving is not None
    assert starving.first_scheduled_time is not None
    assert MAX_WAIT_S <= starving.first_scheduled_time - starving.arrival_time <= MAX_WAIT_S + 5
    assert set(driver.slots) == {"a", "c"}


def test_politeness_ends() -> None:
    """What runs on the only slot would run for long: it is preempted, and loses no token."""
    driver = machine(1)
    keep_busy(driver, "a", 3, max_tokens=60)
    hot = driver.scheduler.live
    driver.step()
    starving = driver.add(PROMPT["b"], adapter="b", max_tokens=3)[0]
    while starving.first_scheduled_time is None:
        keep_busy(driver, "a", 3, max_tokens=60)
        driver.step()
        driver.check()
        assert driver.now - starving.arrival_time <= 2 * MAX_WAIT_S + 2
    assert all(seq.num_preemptions == 1 for seq in hot)
    driver.run()
    assert all(seq.output_token_ids == reference(seq) for seq in hot)
    driver.check_empty()


@pytest.mark.parametrize("num_slots", [1, 2, 4, 8])
def test_the_kth_in_line_has_a_slot_within_the_bound(num_slots: int) -> None:
    """Hot adapters on every slot, renewed at once, others starving: (1 + ceil(k / m)) * max_wait_s, plus the steps
    that recomputing takes."""
    hot, cold = "abcdefgh"[:num_slots], "ijk"
    driver = machine(num_slots, seats=2 * num_slots)
    at_once = max(1, num_slots // 4)
    starving: list[Sequence] = []
    while len(starving) < 3 or any(seq.first_scheduled_time is None for seq in starving):
        for adapter in hot:
            keep_busy(driver, adapter, 3, max_tokens=60)
        if driver.now == 5.0:
            starving = [driver.add(PROMPT[adapter], adapter=adapter, max_tokens=60)[0] for adapter in cold]
        driver.step()
        for k, seq in enumerate(starving, start=1):
            waited = (driver.now if seq.first_scheduled_time is None else seq.first_scheduled_time) - seq.arrival_time
            assert waited <= (1 + math.ceil(k / at_once)) * MAX_WAIT_S + 3 * k


def test_a_reservation_ends_with_the_wish_for_it() -> None:
    driver = machine(1)
    keep_busy(driver, "a", 2, max_tokens=60)
    driver.step()
    driver.add(PROMPT["b"], adapter="b", name="wish")
    while not driver.slots.reservations:
        driver.step()
    late = driver.add(PROMPT["a"], adapter="a", max_tokens=2)[0]
    driver.step()
    assert late.first_scheduled_time is None
    driver.scheduler.cancel("wish/0")
    driver.step()
    assert late.first_scheduled_time is not None
    assert not driver.slots.reservations


def test_a_pause_does_not_stop_a_drain() -> None:
    driver = machine(1)
    driver.add(PROMPT["a"], adapter="a", name="hot", max_tokens=60)
    driver.step()
    starving = driver.add(PROMPT["b"], adapter="b", max_tokens=2)[0]
    while not driver.slots.reservations:
        driver.step()
    driver.scheduler.pause("hot/0")
    driver.step()
    assert starving.first_scheduled_time is not None
    driver.check()


def test_a_pinned_adapter_is_not_drained() -> None:
    driver = machine(2)
    driver.slots.pin("a")
    starving = None
    for step in range(40):
        keep_busy(driver, "a", 2, max_tokens=4)
        keep_busy(driver, "b", 2, max_tokens=20)
        if step == 1:
            starving = driver.add(PROMPT["c"], adapter="c", max_tokens=40)[0]
        driver.step()
        assert "a" in driver.slots
    assert starving is not None
    assert starving.first_scheduled_time is not None


@pytest.mark.parametrize("capacity", [1, 2])
def test_host_memory_too_small_for_the_hot_adapters_starves_nobody(capacity: int) -> None:
    """More slots than host memory has room for: who finds none gets that of an adapter that drains."""
    driver = machine(4, host_capacity=capacity, instant=0)
    starving = None
    for step in range(80):
        for adapter in "ab"[:capacity]:
            keep_busy(driver, adapter, 3, max_tokens=60)
        if step == 5:
            starving = driver.add(PROMPT["c"], adapter="c", max_tokens=2)[0]
        driver.finish_loads()
        driver.step()
        driver.check()
        if starving is not None and starving.first_scheduled_time is not None:
            break
    assert starving is not None
    assert starving.first_scheduled_time is not None
    assert starving.first_scheduled_time - starving.arrival_time <= 2 * MAX_WAIT_S + 5


def test_host_memory_that_only_the_paused_hold_is_taken() -> None:
    driver = machine(4, host_capacity=1)
    driver.add(PROMPT["a"], adapter="a", name="slow", max_tokens=9)
    driver.step()
    driver.scheduler.pause("slow/0")
    other = driver.add(PROMPT["b"], adapter="b", max_tokens=2)[0]
    driver.step()
    assert other.first_scheduled_time is not None
    driver.scheduler.resume("slow/0", driver.now)
    driver.run()
    driver.check_empty()


def test_four_times_as_many_adapters_as_slots_keep_the_slots_busy() -> None:
    driver = machine(4, seats=8)
    sequences = [driver.add([2, 3, number], adapter=f"adapter {number % 16}", max_tokens=8)[0] for number in range(128)]
    driver.run()
    tokens = sum(seq.num_output_tokens for seq in sequences)
    assert tokens / driver.num_steps > 0.8 * 8 * 0.75, "seats stand empty"
    assert driver.slots.num_loads < 64, "slots thrash"
