"""Random programs: whatever happens in whatever order, accounts balance, reads are right, and answers are the model's.

The machine checks every KV cell that a step reads (support/engine_scheduling.py), so these are the oracles for: prefix
cache on = off, chunked = whole, preempted = not preempted, mixed = alone, and no block, slot or host memory is lost.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from openlora_engine.scheduling import SchedulerConfig
from support.engine_programs import Program
from support.engine_scheduling import Machine, Shape, reference

choices = st.integers(0, 2**32 - 1)


class Programs(RuleBasedStateMachine):
    """Hypothesis writes the program; each operation draws its own choices from a seed."""

    @initialize(seed=choices)
    def build(self, seed: int) -> None:
        self.program = Program.random(seed)

    @rule(choice=choices)
    def arrive(self, choice: int) -> None:
        self._do("arrive", choice)

    @rule(choice=choices)
    def step(self, choice: int) -> None:
        self._do("step", choice)

    @rule(choice=choices, name=st.sampled_from(["cancel", "pause", "resume"]))
    def steer(self, choice: int, name: str) -> None:
        self._do(name, choice)

    @rule(choice=choices, name=st.sampled_from(["load", "fail_load", "copy", "fail_slot"]))
    def load(self, choice: int, name: str) -> None:
        self._do(name, choice)

    @rule(choice=choices, name=st.sampled_from(["evict", "pin", "unpin", "wait"]))
    def manage(self, choice: int, name: str) -> None:
        self._do(name, choice)

    @rule(choice=choices, name=st.sampled_from(["fail_step", "meddle"]))
    def disturb(self, choice: int, name: str) -> None:
        self._do(name, choice)

    @invariant()
    def accounts_balance(self) -> None:
        if hasattr(self, "program"):
            self.program.machine.check()

    def teardown(self) -> None:
        if hasattr(self, "program"):
            self.program.settle()

    def _do(self, name: str, choice: int) -> None:
        self.program.rng.seed(choice)
        getattr(self.program, name)()


Programs.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestPrograms = pytest.mark.slow(Programs.TestCase)


def run(program: Program, num_operations: int) -> None:
    for _ in range(num_operations):
        program.rng.choice(program.operations)()
        program.machine.scheduler.check_integrity()
    program.settle()


@pytest.mark.slow
def test_ten_thousand_operations_on_one_machine() -> None:
    shape = Shape(num_blocks=24, num_slots=3, host_capacity=5, instant=False, copies=True)
    config = SchedulerConfig(
        max_num_seqs=6, max_num_batched_tokens=16, max_queue=30, max_queue_per_tenant=15, max_wait_s=5.0
    )
    program = Program(random.Random(2024), shape, config)
    run(program, 10_000)
    stats = program.machine.scheduler.stats
    assert program.num_refused > 50
    assert stats.num_preemptions > 50
    assert stats.prefix_cache_hits > 1000
    assert len(program.machine.done) > 500
    assert program.machine.slots.num_evictions > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_machines_of_all_sizes(seed: int) -> None:
    run(Program.random(seed), 60)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("budget", [4, 1000])
@pytest.mark.parametrize("num_blocks", [10, 400])
def test_sizes_change_no_answer(caching: bool, budget: int, num_blocks: int) -> None:
    """One load on eight machines: cached or not, in chunks or whole, preempted or not."""
    machine = Machine(
        Shape(num_blocks=num_blocks, prefix_caching=caching, num_slots=2),
        SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=budget),
    )
    rng = random.Random(5)
    sequences = []
    for _ in range(20):
        prompt = [5, 6, 7, 8, 9, 10, 11, 12][: rng.randint(1, 8)] + [
            rng.randrange(2, 4) for _ in range(rng.randrange(8))
        ]
        sequences += machine.add(prompt, adapter=rng.choice((None, "a", "b", "c")), max_tokens=20, n=rng.choice((1, 2)))
    machine.run()
    assert all(seq.output_token_ids == reference(seq) for seq in sequences)
    stats = machine.scheduler.stats
    assert (stats.prefix_cache_hits > 0) == caching
    assert num_blocks == 400 or stats.num_preemptions > 0
    machine.check_empty()


def test_the_same_calls_give_the_same_decisions() -> None:
    def trace() -> list[tuple[tuple[str, int, bool], ...]]:
        program, steps = Program.random(77), []
        for _ in range(60):
            program.arrive()
            steps.append(tuple((chunk.seq.seq_id, *chunk[1:]) for chunk in program.machine.step().chunks))
            program.load()
        return steps

    assert trace() == trace()
