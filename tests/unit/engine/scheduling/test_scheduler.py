"""The scheduler's rules one by one: budget, memory, slots, pauses, cancels, refusals."""

from __future__ import annotations

import math

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.scheduling import SchedulerConfig, Sequence, SequenceStatus
from openlora_engine.scheduling.schedule import Schedule
from support.engine_scheduling import Machine, Shape, reference, talkative


def config(**changes: float) -> SchedulerConfig:
    values: dict[str, float] = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "max_wait_s": 5.0, **changes}
    return SchedulerConfig(**values)  # type: ignore[arg-type]


def sizes(schedule: Schedule) -> dict[str, int]:
    return {chunk.seq.seq_id: chunk.num_tokens for chunk in schedule.chunks}


def long_prompt(length: int, first: int = 2) -> list[int]:
    return [first, *range(100, 99 + length)]


class TestBudget:
    def test_prompts_are_cut_to_the_budget_and_mixed_with_decode(self) -> None:
        machine = Machine()
        machine.add([2, 3], name="short", max_tokens=9)
        machine.step()
        machine.add(long_prompt(20), name="long", max_tokens=2)
        schedule = machine.step()
        assert sizes(schedule) == {"short/0": 1, "long/0": 15}
        assert [chunk.samples for chunk in schedule.chunks] == [True, False]
        schedule = machine.step()
        assert sizes(schedule) == {"short/0": 1, "long/0": 5}
        assert all(chunk.samples for chunk in schedule.chunks)

    def test_a_long_prompt_leaves_half_of_the_budget_to_others(self) -> None:
        machine = Machine()
        machine.add(long_prompt(60), name="long")
        assert sizes(machine.step()) == {"long/0": 16}
        machine.add(long_prompt(5, 3), name="short")
        machine.add(long_prompt(30, 4), name="middle")
        assert sizes(machine.step()) == {"long/0": 8, "short/0": 5, "middle/0": 3}
        machine.add(long_prompt(2, 5), name="late")
        schedule = sizes(machine.step())
        assert schedule["short/0"] == 1
        assert schedule["long/0"] == 8

    def test_rows_of_an_adapter_are_together_and_the_base_is_first(self) -> None:
        machine = Machine()
        for adapter in ("b", None, "a", "b", None, "a"):
            machine.add([2, 3], adapter=adapter, max_tokens=9)
        machine.step()
        slots = [chunk.seq.slot for chunk in machine.step().chunks]
        assert slots == [None, None, 0, 0, 1, 1]

    def test_max_tokens_0_computes_the_prompt_and_samples_nothing(self) -> None:
        machine = Machine()
        seq = machine.add(long_prompt(18), max_tokens=0)[0]
        schedules = [machine.step(), machine.step()]
        assert not any(chunk.samples for schedule in schedules for chunk in schedule.chunks)
        assert machine.done == {seq.seq_id: seq}
        assert seq.num_output_tokens == 0
        machine.check_empty()

    def test_seats_are_bounded(self) -> None:
        machine = Machine(config=config(max_num_seqs=2))
        for _ in range(5):
            machine.add([2, 3])
        assert len(machine.step().chunks) == 2
        assert machine.scheduler.stats.num_waiting == 3


class TestMemory:
    def test_the_running_grow_at_the_cost_of_the_last_in_line(self) -> None:
        machine = Machine(Shape(num_blocks=5, prefix_caching=False))
        first, second = (machine.add(long_prompt(7, first), max_tokens=8)[0] for first in (2, 3))
        preempted: list[Sequence] = []
        for _ in range(100):
            preempted += machine.step().preempted
            machine.check()
            if not len(machine.scheduler):
                break
        assert set(preempted) == {second}
        assert first.output_token_ids == reference(first)
        assert second.output_token_ids == reference(second)
        assert second.num_preemptions == len(preempted)

    def test_the_most_served_tenant_gives_way(self) -> None:
        machine = Machine(Shape(num_blocks=6, prefix_caching=False))
        served = machine.add(talkative(8, 12), tenant="served", max_tokens=12)[0]
        for _ in range(4):
            machine.step()
        modest = machine.add(talkative(3, 12, first=50), tenant="modest", max_tokens=12)[0]
        while not (preempted := machine.step().preempted):
            machine.check()
        assert preempted == (served,), "though it came first"
        machine.run()
        for seq in (served, modest):
            assert seq.output_token_ids == reference(seq)

    def test_who_recomputes_is_not_preempted_again_before_it_had_a_token(self) -> None:
        machine = Machine(Shape(num_blocks=6, prefix_caching=False), config(max_num_batched_tokens=8))
        sequences = [machine.add(talkative(3, 15, first=20 * n), tenant=f"{n}", max_tokens=15)[0] for n in range(3)]
        outputs: dict[Sequence, int] = {}
        while len(machine.scheduler):
            for seq in machine.step().preempted:
                assert seq.num_output_tokens > outputs.get(seq, -1)
                outputs[seq] = seq.num_output_tokens
        assert outputs
        assert [seq.output_token_ids for seq in sequences] == [reference(seq) for seq in sequences]

    def test_resuming_after_preemption_is_cheap_with_a_prefix_cache(self) -> None:
        costs = {}
        for caching in (True, False):
            machine = Machine(Shape(num_blocks=14, prefix_caching=caching), config(max_num_batched_tokens=64))
            seq = machine.add(long_prompt(24), name="seq", max_tokens=6)[0]
            machine.step()
            machine.scheduler.pause("seq/0")
            machine.add(long_prompt(20, 3), name="other", max_tokens=1)
            machine.step()
            machine.scheduler._roster.preempt(seq)
            machine.scheduler.resume("seq/0", machine.now)
            machine.run()
            assert seq.output_token_ids == reference(seq)
            costs[caching] = machine.num_computed
        assert costs[False] - costs[True] >= 20

    def test_the_first_in_rank_is_not_overtaken_for_being_large(self) -> None:
        machine = Machine(Shape(num_blocks=8, prefix_caching=False), config(max_wait_s=1e9))
        machine.add(long_prompt(12), max_tokens=8, name="running")
        machine.step()
        machine.add(long_prompt(24, 3), max_tokens=1, name="large")
        machine.add([4], max_tokens=1, name="small")
        machine.run()
        assert machine.admitted == ["running/0", "large/0", "small/0"]

    def test_what_can_never_fit_is_refused_at_once(self) -> None:
        machine = Machine(Shape(num_blocks=4))
        machine.add(long_prompt(16), max_tokens=1)
        with pytest.raises(EngineError, match="--kv-cache-memory") as refusal:
            machine.add(long_prompt(16), max_tokens=2)
        assert refusal.value.code is Code.PROMPT_TOO_LONG
        machine.run()
        machine.check_empty()

    def test_a_million_tokens_are_refused(self) -> None:
        with pytest.raises(EngineError) as refusal:
            Machine().add([1] * 1_000_000)
        assert refusal.value.code is Code.PROMPT_TOO_LONG

    def test_an_empty_prompt_is_refused(self) -> None:
        with pytest.raises(EngineError) as refusal:
            Machine().add([])
        assert refusal.value.code is Code.PROMPT_EMPTY


class TestSharing:
    def test_n_choices_cost_one_prefill(self) -> None:
        machine = Machine(config=config(max_num_batched_tokens=64))
        choices = machine.add(long_prompt(33), n=5, max_tokens=1)
        schedule = machine.step()
        assert sizes(schedule) == {choices[0].seq_id: 33}
        schedule = machine.step()
        assert sizes(schedule) == {choice.seq_id: 1 for choice in choices[1:]}
        assert all(choice.num_cached_tokens == 32 for choice in choices[1:])
        machine.check_empty()

    def test_without_a_cache_each_choice_runs_by_itself(self) -> None:
        machine = Machine(Shape(prefix_caching=False), config(max_num_batched_tokens=64))
        choices = machine.add(long_prompt(20), n=3, max_tokens=1)
        assert sizes(machine.step()) == {choice.seq_id: 20 for choice in choices}

    def test_who_waits_for_a_prefix_does_not_hold_up_who_does_not(self) -> None:
        machine = Machine(config=config(max_num_batched_tokens=8))
        machine.add(long_prompt(30), name="leader", max_tokens=1)
        machine.step()
        machine.add(long_prompt(30), name="follower", max_tokens=1)
        machine.add([7, 8], name="other", max_tokens=1)
        assert sizes(machine.step()) == {"leader/0": 6, "other/0": 2}

    @pytest.mark.parametrize("event", ["cancel", "pause", "preempt"])
    def test_followers_go_on_when_their_leader_stops(self, event: str) -> None:
        machine = Machine(config=config(max_num_batched_tokens=8))
        leader = machine.add(long_prompt(30), name="leader")[0]
        follower = machine.add(long_prompt(30), name="follower")[0]
        machine.step()
        machine.check()
        if event == "preempt":
            machine.scheduler._queue.take_place(leader, machine.now)
            machine.scheduler._roster.preempt(leader)
        else:
            getattr(machine.scheduler, event)("leader/0")
        machine.check()
        assert "follower/0" in sizes(machine.step())
        machine.scheduler.resume("leader/0", machine.now)
        machine.run()
        assert follower.output_token_ids == reference(follower)

    def test_salts_and_adapters_wait_for_nobody(self) -> None:
        machine = Machine(config=config(max_num_batched_tokens=64))
        for adapter, salt in ((None, ""), (None, "s"), ("a", ""), ("b", "")):
            machine.add(long_prompt(12), adapter=adapter, salt=salt, max_tokens=1)
        assert list(sizes(machine.step()).values()) == [12] * 4

    def test_a_turn_of_a_conversation_finds_the_last_one(self) -> None:
        machine = Machine(config=config(max_num_batched_tokens=64))
        first = machine.add(long_prompt(21), max_tokens=12)[0]
        machine.run()
        again = machine.add([*first.token_ids, 5, 6], max_tokens=1)[0]
        machine.run()
        assert again.num_cached_tokens >= (first.num_tokens - 1) // 4 * 4
        stats = machine.scheduler.stats
        assert stats.prefix_cache_hits == again.num_cached_tokens
        assert stats.prefix_cache_queries == 21 + again.num_prompt_tokens


class TestPause:
    def test_a_paused_sequence_gives_up_its_seat_and_keeps_its_blocks(self) -> None:
        machine = Machine(config=config(max_num_seqs=1))
        seq = machine.add([2, 3], name="slow", max_tokens=5, adapter="a")[0]
        machine.step()
        assert machine.scheduler.pause("slow/0")
        assert machine.scheduler.pause("slow/0")
        machine.add([4, 5], name="other", max_tokens=2)
        assert sizes(machine.step()) == {"other/0": 2}
        assert seq.status is SequenceStatus.PAUSED
        assert seq.block_table
        assert machine.slots.num_refs("a") == 1
        machine.scheduler.resume("slow/0", machine.now)
        machine.run()
        assert (seq.output_token_ids, seq.num_preemptions) == (reference(seq), 0)
        machine.check_empty()

    def test_it_is_the_first_to_lose_memory(self) -> None:
        machine = Machine(Shape(num_blocks=6, prefix_caching=False))
        slow = machine.add(long_prompt(8), name="slow", max_tokens=5)[0]
        machine.step()
        machine.scheduler.pause("slow/0")
        schedule = machine.step()
        assert not schedule.chunks
        machine.add(long_prompt(17, 3), name="other", max_tokens=2)
        schedule = machine.step()
        assert schedule.preempted == (slow,)
        assert sizes(schedule) == {"other/0": 16}
        assert slow.status is SequenceStatus.PAUSED
        machine.check()
        machine.scheduler.resume("slow/0", machine.now)
        assert slow.status is SequenceStatus.PREEMPTED
        machine.run()
        assert slow.output_token_ids == reference(slow)

    def test_memory_that_would_not_suffice_is_not_taken(self) -> None:
        machine = Machine(Shape(num_blocks=8, prefix_caching=False))
        slow = machine.add([2], name="slow", max_tokens=5)[0]
        machine.add(long_prompt(15, 3), name="running", max_tokens=9)
        machine.step()
        machine.scheduler.pause("slow/0")
        machine.add(long_prompt(32, 4), name="large", max_tokens=1)
        assert not machine.step().preempted
        assert slow.block_table

    def test_it_gives_its_slot_to_who_waits_for_one(self) -> None:
        machine = Machine(Shape(num_slots=1))
        slow = machine.add([2, 3], name="slow", adapter="a", max_tokens=5)[0]
        machine.step()
        machine.scheduler.pause("slow/0")
        machine.step()
        assert slow.slot == 0
        machine.add([2, 3], name="other", adapter="b", max_tokens=2)
        assert sizes(machine.step()) == {"other/0": 2}
        assert slow.slot is None
        machine.scheduler.resume("slow/0", machine.now)
        machine.run()
        assert slow.output_token_ids == reference(slow)

    def test_before_it_ran_it_lets_go_of_host_memory(self) -> None:
        machine = Machine(Shape(instant=False))
        machine.add([2, 3], name="slow", adapter="a")
        assert machine.host.requested == {"a"}
        machine.scheduler.pause("slow/0")
        assert not machine.host.requested
        machine.scheduler.resume("slow/0", machine.now)
        assert machine.host.requested == {"a"}
        machine.run()
        machine.check_empty()

    def test_a_step_in_flight_is_counted_though_paused(self) -> None:
        machine = Machine()
        seq = machine.add([2, 3], name="slow")[0]
        schedule = machine.begin()
        machine.scheduler.pause("slow/0")
        machine.end(schedule)
        assert seq.num_output_tokens == 1
        machine.check()

    def test_unknown_sequences_are_not_paused(self) -> None:
        scheduler = Machine().scheduler
        assert not scheduler.pause("nobody/0")
        assert not scheduler.resume("nobody/0", 0.0)


class TestCancel:
    def test_a_storm_at_every_stage_leaves_nothing(self) -> None:
        for stage in range(12):
            machine = Machine(Shape(num_blocks=16, num_slots=2, instant=False), config(max_num_seqs=4))
            for number in range(12):
                adapter = (None, "a", "b", "c")[number % 4]
                machine.add(long_prompt(5 + number), name=f"r{number}", adapter=adapter, max_tokens=6, n=1 + number % 2)
            for step in range(stage):
                machine.step()
                if step == 2:
                    machine.scheduler.pause("r0/0")
                    machine.scheduler.pause("r1/0")
                if step % 2:
                    machine.finish_loads()
            for seq in machine.scheduler.live:
                assert machine.scheduler.cancel(seq.seq_id) is seq
                machine.check()
            machine.check_empty()

    def test_in_the_midst_of_a_step_the_others_go_on(self) -> None:
        machine = Machine()
        machine.add([2, 3], name="a", max_tokens=3)
        other = machine.add([4, 5], name="b", max_tokens=3)[0]
        schedule = machine.begin()
        cancelled = machine.scheduler.cancel("a/0")
        assert cancelled is not None
        assert cancelled.block_table, "the step still reads them"
        assert machine.scheduler.advance(schedule, [7, 8]) == (other,)
        assert not cancelled.block_table
        assert machine.blocks.num_free_blocks == machine.blocks.num_blocks - 1
        assert other.token_ids == [4, 5, 8]
        machine.check()

    def test_an_adapter_stays_in_its_slot_until_the_step_ends(self) -> None:
        machine = Machine()
        machine.add([2, 3], name="a", adapter="a")
        schedule = machine.begin()
        machine.scheduler.cancel("a/0")
        with pytest.raises(EngineError) as refusal:
            machine.slots.evict("a")
        assert refusal.value.code is Code.ADAPTER_IN_USE
        machine.end(schedule)
        machine.slots.evict("a")
        machine.check_empty()

    def test_cancelling_twice_is_harmless(self) -> None:
        machine = Machine()
        machine.add([2, 3], name="a")
        assert machine.scheduler.cancel("a/0") is not None
        assert machine.scheduler.cancel("a/0") is None
        assert "a/0" not in machine.scheduler


class TestFailedSteps:
    def test_an_abandoned_step_is_given_again(self) -> None:
        machine = Machine()
        seq = machine.add(long_prompt(20), name="a", max_tokens=3)[0]
        schedule = machine.begin()
        machine.scheduler.abandon(schedule)
        assert seq.num_computed_tokens == 0
        again = machine.begin()
        assert again.chunks == schedule.chunks
        machine.end(again)
        machine.run()
        assert seq.output_token_ids == reference(seq)

    def test_one_may_be_dropped_and_the_others_retried(self) -> None:
        machine = Machine()
        machine.add([2, 3], name="large")
        other = machine.add([4, 5], name="other")[0]
        machine.scheduler.abandon(machine.begin())
        machine.scheduler.cancel("large/0")
        machine.run()
        assert other.output_token_ids == reference(other)
        machine.check_empty()


class TestLoading:
    def test_loads_start_on_arrival_and_hold_up_nobody(self) -> None:
        machine = Machine(Shape(instant=False))
        cold = machine.add([2, 3], name="cold", adapter="a", max_tokens=2)[0]
        assert list(machine.host.loading) == ["a"]
        assert cold.status is SequenceStatus.WAITING_ADAPTER
        machine.add([2, 3], name="base", max_tokens=2)
        assert sizes(machine.step()) == {"base/0": 2}
        machine.now = 4.0
        machine.finish_loads()
        assert cold.status is SequenceStatus.WAITING
        assert "cold/0" in sizes(machine.step())
        assert (cold.adapter_tier, cold.adapter_wait_s) == ("disk", 4.0)
        again = machine.add([2, 3], adapter="a")[0]
        assert again.adapter_tier == "slot"

    def test_one_request_for_many_sequences(self) -> None:
        machine = Machine(Shape(instant=False))
        for _ in range(3):
            machine.add([2, 3], adapter="a", n=2)
        assert list(machine.host.loading) == ["a"]
        machine.run()
        machine.check_empty()

    def test_a_failed_load_drops_who_waited_for_it(self) -> None:
        machine = Machine(Shape(instant=False))
        waiting = machine.add([2, 3], adapter="a", n=2)
        machine.add([2, 3], name="base")
        assert machine.host.fail_load() == "a"
        assert set(machine.scheduler.adapter_failed("a")) == set(waiting)
        assert machine.scheduler.adapter_failed("a") == ()
        machine.run()
        machine.check_empty()

    def test_a_slot_that_cannot_be_filled_fails_one_sequence(self) -> None:
        machine = Machine()
        machine.loader.fails.add("a")
        machine.add([2, 3], name="first", adapter="a")
        second = machine.add([2, 3], name="second", adapter="a")[0]
        schedule = machine.step()
        (failure,) = schedule.failed
        assert failure.seq.seq_id == "first/0"
        assert failure.error.code is Code.OUT_OF_MEMORY
        assert [chunk.seq for chunk in schedule.chunks] == [second]
        machine.run()
        machine.check_empty()

    def test_a_copy_under_way_delays_its_own_sequence_only(self) -> None:
        machine = Machine(Shape(copies=True))
        machine.add([2, 3], name="a", adapter="a", max_tokens=2)
        schedule = machine.step()
        assert (schedule.chunks, schedule.num_copying) == ((), 1)
        machine.add([2, 3], name="base", max_tokens=2)
        schedule = machine.step()
        assert (sizes(schedule), schedule.num_copying) == ({"base/0": 2}, 1)
        machine.loader.finish_copies()
        assert "a/0" in sizes(machine.step())

    def test_adapters_need_slots(self) -> None:
        with pytest.raises(EngineError, match="--max-loras") as refusal:
            Machine(Shape(num_slots=0)).add([2], adapter="a")
        assert refusal.value.code is Code.UNSUPPORTED

    def test_it_is_known_which_adapters_are_in_use(self) -> None:
        machine = Machine(Shape(num_slots=1))
        machine.add([2, 3], adapter="a", max_tokens=20)
        machine.add([2, 3], adapter="b")
        machine.step()
        assert machine.scheduler.uses("a")
        assert machine.scheduler.uses("b")
        assert not machine.scheduler.uses("c")
        stats = machine.scheduler.stats
        assert (stats.running_adapters, stats.waiting_adapters, stats.slots_used) == (("a",), ("b",), 1)
        assert stats.kv_cache_usage == 1 / 64


class TestQueueLimits:
    def test_a_full_queue_says_when_to_come_back(self) -> None:
        machine = Machine(config=config(max_num_seqs=2, max_queue=4, max_queue_per_tenant=4))
        for _ in range(6):
            machine.add([2, 3], max_tokens=9)
        with pytest.raises(EngineError) as refusal:
            machine.add([2, 3])
        assert refusal.value.code is Code.BUSY
        assert refusal.value.retry_after_s == 1.0
        machine.step()
        seq = Sequence("x/0", "x", [2, 3], 2, 1)
        with pytest.raises(EngineError) as refusal:
            machine.scheduler.add(seq, machine.now, drain_rate=0.5)
        assert refusal.value.retry_after_s == 8.0
        with pytest.raises(EngineError) as refusal:
            machine.scheduler.add(seq, machine.now, drain_rate=1e-9)
        assert refusal.value.retry_after_s == 60.0

    def test_one_tenant_does_not_fill_it_for_all(self) -> None:
        machine = Machine(config=config(max_num_seqs=1, max_queue=10, max_queue_per_tenant=2))
        machine.add([2, 3], tenant="x", n=3)
        with pytest.raises(EngineError, match="this tenant"):
            machine.add([2, 3], tenant="x")
        machine.add([2, 3], tenant="y")

    def test_choices_enter_together_or_not_at_all(self) -> None:
        machine = Machine(config=config(max_num_seqs=1, max_queue=3, max_queue_per_tenant=3))
        with pytest.raises(EngineError):
            machine.add([2, 3], adapter="a", n=5)
        assert not len(machine.scheduler)
        assert not machine.host.requested

    def test_the_paused_count_too(self) -> None:
        machine = Machine(config=config(max_num_seqs=1, max_queue=2, max_queue_per_tenant=2))
        for number in range(3):
            machine.add([2, 3], name=f"r{number}")
            machine.step()
            machine.scheduler.pause(f"r{number}/0")
        with pytest.raises(EngineError):
            machine.add([2, 3])


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_batched_tokens": 7}, "--max-num-batched-tokens"),
        ({"max_wait_s": 0.0}, "--max-wait-s"),
        ({"max_wait_s": math.nan}, "--max-wait-s"),
        ({"max_queue": 0}, "--max-queue"),
    ],
)
def test_impossible_configurations_name_their_flag(values: dict[str, float], flag: str) -> None:
    with pytest.raises(EngineError, match=flag) as refusal:
        config(**values)
    assert refusal.value.code is Code.CONFIG_INVALID
