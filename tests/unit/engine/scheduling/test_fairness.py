"""Virtual token counters: who is next, what idleness earns, what a flood costs others; and the bound on waiting."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_engine.scheduling import SchedulerConfig, Sequence
from openlora_engine.scheduling.fairness import VirtualTokenCounters
from support.engine_scheduling import Machine, Shape, talkative

NEVER = 1e9


def test_returning_from_idleness_earns_no_credit_and_clears_no_debt() -> None:
    counters: VirtualTokenCounters[str] = VirtualTokenCounters()
    counters.join("busy")
    counters.charge("busy", 100)
    counters.join("new")
    assert counters["new"] == 100
    counters.charge("new", 50)
    counters.leave("new")
    counters.charge("busy", 20)
    counters.join("new")
    assert counters["new"] == 150, "its debt is kept"
    counters.leave("new")
    counters.charge("busy", 80)
    counters.join("new")
    assert counters["new"] == 200, "its idle time is not"


def test_with_nobody_waiting_the_last_to_leave_sets_the_floor() -> None:
    counters: VirtualTokenCounters[str] = VirtualTokenCounters()
    counters.join("a")
    counters.charge("a", 70)
    counters.leave("a")
    assert counters.floor == 70
    counters.join("b")
    assert counters["b"] == 70
    assert counters.rank("b") < (70, 99)


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_the_floor_never_falls(rng: random.Random) -> None:
    counters: VirtualTokenCounters[int] = VirtualTokenCounters(max_remembered=2)
    waiting: set[int] = set()
    floor = 0.0
    for _ in range(100):
        client = rng.randrange(6)
        if client in waiting:
            counters.charge(client, rng.randrange(10))
            if rng.random() < 0.5:
                counters.leave(client)
                counters.retire(client)
                waiting.discard(client)
        else:
            counters.join(client)
            waiting.add(client)
        assert counters.floor >= floor
        floor = counters.floor
        assert len(counters) <= len(waiting) + 2


def test_memory_of_clients_is_bounded() -> None:
    counters: VirtualTokenCounters[int] = VirtualTokenCounters(max_remembered=10)
    counters.join(-1)
    for client in range(1000):
        counters.join(client)
        counters.charge(client, 1 + client)
        counters.leave(client)
        counters.retire(client)
    assert len(counters) == 11
    assert counters[999] == 1000, "the largest debts are remembered"


def served(machine: Machine, tenant: str, sequences: list[Sequence]) -> float:
    """Weighted tokens computed for a tenant; prompts are not cached here."""
    of_tenant = [seq for seq in sequences if seq.tenant == tenant]
    return sum(
        min(seq.num_computed_tokens or (seq.num_tokens if seq.seq_id in machine.done else 0), seq.num_prompt_tokens)
        + 2 * seq.num_output_tokens
        for seq in of_tenant
    )


@pytest.mark.parametrize("max_wait_s", [NEVER, 5.0])
def test_a_flood_does_not_take_anothers_share(max_wait_s: float) -> None:
    """The service of two backlogged tenants differs by at most 2 * max(w_p * L_input, w_q * M) (VTC, theorem 4.4), M
    being the tokens that fit into a batch; ageing, at one admission in four, does not undo that."""
    shape = Shape(num_blocks=64, block_size=4, prefix_caching=False)
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=16, max_queue=2000, max_queue_per_tenant=2000, max_wait_s=max_wait_s
    )
    machine = Machine(shape, config)
    rng = random.Random(3)
    sequences: list[Sequence] = []

    def send(tenant: str, count: int) -> None:
        for _ in range(count):
            prompt = [rng.randrange(2, 1000) for _ in range(rng.choice((2, 8, 16)))]
            sequences.extend(machine.add(prompt, max_tokens=rng.choice((2, 8, 16)), tenant=tenant))

    send("flood", 800)
    for _ in range(100):
        machine.step()
    before = {tenant: served(machine, tenant, sequences) for tenant in ("flood", "modest")}
    send("modest", 100)
    bound = 2 * max(1 * 16, 2 * 4 * 31)
    for _ in range(300):
        machine.step()
        flood, modest = (served(machine, t, sequences) - before[t] for t in ("flood", "modest"))
        assert abs(flood - modest) <= bound
    assert any(seq.tenant == "modest" and seq.seq_id not in machine.done for seq in sequences), "both stayed backlogged"
    assert modest > 0.45 * (flood + modest)


def test_a_tenants_adapters_share_what_the_tenant_gets() -> None:
    machine = Machine(Shape(num_slots=4), SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8, max_wait_s=NEVER))
    sequences = [machine.add([number + 2, 5, 6], adapter="hot", max_tokens=4)[0] for number in range(60)]
    for _ in range(10):
        machine.step()
    late = [machine.add([number + 2, 5, 6], adapter="rare", max_tokens=4)[0] for number in range(5)]
    before = machine.num_steps
    while any(seq.seq_id not in machine.done for seq in late):
        machine.step()
    hot_meanwhile = sum(1 for seq in sequences if seq.seq_id in machine.done)
    assert machine.num_steps - before < 40
    assert hot_meanwhile < 40, "the rare adapter did not wait behind the hot one's queue"


def test_a_tenant_in_debt_waits_no_longer_than_the_bound() -> None:
    """Newcomers arrive at every step, each with a smaller counter than the debtor: ageing alone serves it."""
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8, max_wait_s=10.0, aged_every=4)
    machine = Machine(Shape(prefix_caching=False), config)
    machine.add(talkative(2, 40), tenant="debtor", name="first", max_tokens=40)
    number = 0

    def newcomers_step(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            machine.add([2, 3], tenant=f"newcomer {number}", max_tokens=1)
        machine.step()

    while "first/0" not in machine.done:
        newcomers_step(1)
    # With nobody else waiting its debt would be void: newcomers would be lifted to it.
    machine.add([2, 3], tenant="early newcomer", max_tokens=1)
    debtor = machine.add([2, 3], tenant="debtor", max_tokens=1)[0]
    while debtor.first_scheduled_time is None:
        newcomers_step(2)
        assert machine.now - debtor.arrival_time < 10 + 4
    assert debtor.first_scheduled_time - debtor.arrival_time >= 10, "fairness alone would not have served it yet"


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_nobody_waits_beyond_the_bound(rng: random.Random) -> None:
    """Once a request waited max_wait_s, at most aged_every * (number then longer in line + 1) admissions come first."""
    config = SchedulerConfig(
        max_num_seqs=2, max_num_batched_tokens=8, max_wait_s=6.0, aged_every=rng.choice((1, 2, 4)), max_queue=10**4
    )
    machine = Machine(Shape(num_blocks=256, prefix_caching=False), config)
    deadline: dict[str, int] = {}
    live: list[Sequence] = []
    for step in range(120):
        if step < 60:
            for _ in range(rng.randrange(3)):
                prompt = [rng.randrange(2, 9) for _ in range(rng.randint(1, 6))]
                live += machine.add(prompt, max_tokens=rng.randint(1, 4), tenant=rng.choice("xyyyyy"))
        waiting = [seq for seq in live if seq.first_scheduled_time is None]
        for index, seq in enumerate(waiting):
            if machine.now - seq.arrival_time >= 6.0:
                deadline.setdefault(seq.seq_id, len(machine.admitted) + config.aged_every * (index + 1))
        machine.step()
        for position, seq_id in enumerate(machine.admitted, start=1):
            assert position <= deadline.get(seq_id, position)
    machine.run()
