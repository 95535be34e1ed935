"""The memory plan: it divides what there is, never promises more, and a refusal names the flag that helps."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.config import EngineConfig
from openlora_engine.errors import Code, EngineError
from openlora_engine.memory import RESERVE, ModelSize, gibibytes, host_memory_available, plan_memory

GIB = 1 << 30
SMALL = ModelSize(weights=650 << 20, kv_per_token=46_080, max_model_len=8_192, activations=64 << 20, slot=0)


def refusal(config: EngineConfig, model: ModelSize, available: int, device: str = "cpu") -> EngineError:
    with pytest.raises(EngineError) as caught:
        plan_memory(config, model, device, available)
    assert caught.value.code is Code.DOES_NOT_FIT
    return caught.value


def test_the_default_model_on_a_small_machine() -> None:
    plan = plan_memory(EngineConfig(block_size=16), SMALL, "cpu", 23 * GIB)
    assert plan.kv_blocks <= 23 * GIB // 4
    assert plan.num_blocks * 16 >= SMALL.max_model_len
    assert plan.total + RESERVE <= plan.available
    text = "\n".join(plan.lines())
    assert "of 23.00 GiB free on cpu" in text
    assert "32 slots" in text


def test_no_more_blocks_than_the_sequences_can_use() -> None:
    tiny = dataclasses.replace(SMALL, max_model_len=64, kv_per_token=1_024)
    plan = plan_memory(EngineConfig(block_size=16, max_num_batched_tokens=64), tiny, "cpu", 100 * GIB)
    assert plan.num_blocks == 32 * 4


def test_cuda_slots_are_counted_and_the_host_cache_is_not() -> None:
    model = dataclasses.replace(SMALL, slot=100 << 20)
    plan = plan_memory(EngineConfig(block_size=16, host_cache=64 * GIB), model, "cuda", 24 * GIB)
    assert plan.slots == 32 * (100 << 20)
    assert plan.total + RESERVE <= plan.available


@pytest.mark.parametrize(
    ("config", "model", "available", "device", "flag"),
    [
        (EngineConfig(block_size=16, host_cache=8 * GIB), SMALL, 6 * GIB, "cpu", "--host-cache"),
        (EngineConfig(block_size=16, kv_cache_memory=20 * GIB), SMALL, 16 * GIB, "cpu", "--kv-cache-memory"),
        (EngineConfig(block_size=16), dataclasses.replace(SMALL, slot=GIB), 24 * GIB, "cuda", "--max-loras"),
        (
            EngineConfig(block_size=16, host_cache=1 << 20),
            dataclasses.replace(SMALL, weights=30 * GIB),
            8 * GIB,
            "cpu",
            "--host-cache",
        ),
    ],
)
def test_a_refusal_names_the_flag(
    config: EngineConfig, model: ModelSize, available: int, device: str, flag: str
) -> None:
    assert flag in refusal(config, model, available, device).message


def test_a_pool_smaller_than_one_sequence_is_refused_with_both_ways_out() -> None:
    error = refusal(EngineConfig(block_size=16, kv_cache_memory=100 << 20), SMALL, 23 * GIB)
    assert "--max-model-len 2272 or less" in error.message
    assert "--kv-cache-memory to 360MiB or more" in error.message


@given(
    st.integers(0, 64 * GIB),
    st.integers(1, 40 * GIB),
    st.integers(1, 1 << 20),
    st.integers(16, 1 << 17),
    st.one_of(st.none(), st.integers(0, 32 * GIB)),
)
def test_a_plan_never_promises_more_than_there_is(
    available: int, weights: int, kv_per_token: int, max_model_len: int, kv_cache_memory: int | None
) -> None:
    model = ModelSize(weights, kv_per_token, max_model_len, 1 << 20, 0)
    try:
        plan = plan_memory(EngineConfig(block_size=16, kv_cache_memory=kv_cache_memory), model, "cpu", available)
    except EngineError as error:
        assert error.code is Code.DOES_NOT_FIT
        assert "--" in error.message
    else:
        assert plan.total + RESERVE <= available
        assert plan.num_blocks * plan.block_size >= max_model_len


def test_sizes_for_people() -> None:
    assert gibibytes(3 * GIB) == "3.00 GiB"
    assert gibibytes(5 << 20) == "5.0 MiB"


def test_this_machine_has_memory() -> None:
    assert 1 << 28 < host_memory_available() < 1 << 50
