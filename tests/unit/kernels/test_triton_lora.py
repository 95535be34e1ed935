"""The Triton kernels equal the reference for any shape, rank, dtype and segments; the grid never asks the device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_kernels import BlobLayout, LoraGroup, LoraTables, Segments, triton_lora
from openlora_kernels.triton_lora import BUCKETS, DECODE, MIXED, PREFILL, rank_capacity, tiles_for
from support.engine_triton_worker import DTYPES, Case, TritonWorker

TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}  # half a unit in the last place of the stored y


@pytest.fixture(scope="module")
def worker() -> Iterator[TritonWorker]:
    with TritonWorker() as process:
        yield process


def check(worker: TritonWorker, case: Case) -> None:
    outcome = worker.run(case)
    assert outcome.error <= TOLERANCE[case.activation]
    assert outcome.outside_unchanged
    assert outcome.repeat_equal


def rows(*lengths: int) -> list[list[int]]:
    """Disjoint row lists of these lengths, in descending order so that order matters."""
    total = sum(lengths)
    out = []
    for length in lengths:
        out.append([total - 1 - i for i in range(length)])
        total -= length
    return out


CASES = {
    "decode, a row a segment": Case(70, (40, 24, 8), [[3, 0, 16], [1, 1, 1]], [(1, [3]), (0, [1])], 5),
    "rank 1": Case(64, (64,), [[1]], [(0, [0])], 1),
    "rank 256": Case(48, (33,), [[256]], [(0, [2, 0, 1])], 4),
    "rank 64 in one target, 3 in another": Case(32, (130, 20), [[64, 3]], [(0, [0, 2])], 3),
    "split K with a tail": Case(520, (16,), [[3]], [(0, [0])], 1),
    "slot without weights": Case(32, (16, 16), [[0, 0], [2, 2]], [(0, [0]), (1, [1])], 3),
    "empty segments and spare rows": Case(
        32, (16,), [[2], [3], [4]], [(0, []), (1, [4]), (2, []), (0, [2]), (1, [])], 6, spare=3
    ),
    "two segments of one slot": Case(32, (16,), [[5]], [(0, [0, 1]), (0, [3])], 4),
    "mixed tiles, tails everywhere": Case(
        90, (140, 9), [[20, 0], [1, 33]], [(s, r) for s, r in enumerate(rows(19, 5))], 24
    ),
    "prefill tiles": Case(70, (70,), [[16], [3]], [(s, r) for s, r in enumerate(rows(70, 3))], 75),
    "row strides beyond the width": Case(40, (24, 24), [[4, 4]], [(0, [0, 2])], 3, row_stride_extra=8),
    "odd row strides": Case(40, (24,), [[4]], [(0, [0, 2])], 3, row_stride_extra=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(worker: TritonWorker, name: str) -> None:
    check(worker, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1, 1), (12, 6), (40, 30)], ids=["decode", "mixed", "prefill"])
@pytest.mark.parametrize("activation", DTYPES)
def test_every_dtype_in_every_bucket(worker: TritonWorker, activation: str, lengths: tuple[int, int]) -> None:
    segments = list(enumerate(rows(*lengths)))
    for weight in {activation, "float16"}:
        check(worker, Case(72, (40, 8), [[16, 3], [0, 5]], segments, sum(lengths), activation, weight))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_targets = draw(st.integers(1, 3))
    slots = draw(st.integers(1, 3))
    rank = st.sampled_from([0, 1, 3, 16, 17])
    order = draw(st.permutations(range(draw(st.integers(1, 9)))))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), min_size=2, max_size=4)))
    return Case(
        in_features=draw(st.integers(1, 80)),
        out_features=draw(st.lists(st.integers(1, 50), min_size=num_targets, max_size=num_targets)),
        ranks=[[draw(rank) for _ in range(num_targets)] for _ in range(slots)],
        segments=[(draw(st.integers(0, slots - 1)), order[a:b]) for a, b in pairwise(cuts)],
        num_rows=len(order),
        activation=draw(st.sampled_from(DTYPES)),
        weight=draw(st.sampled_from(DTYPES)),
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(case=cases())
def test_any_batch_equals_the_reference(worker: TritonWorker, case: Case) -> None:
    check(worker, case)


def test_buckets_follow_the_mean_segment() -> None:
    assert [tiles_for(n, s) for n, s in ((1, 1), (32, 32), (33, 2), (64, 2), (65, 2), (512, 1))] == [
        DECODE,
        DECODE,
        MIXED,
        MIXED,
        PREFILL,
        PREFILL,
    ]


@pytest.mark.parametrize(
    ("ranks", "capacity"), [([], 0), ([[0, 0]], 0), ([[1, 0]], 16), ([[16, 1]], 32), ([[64, 64], [2, 2]], 128)]
)
def test_rank_capacity_holds_the_highest_slot(ranks: list[list[int]], capacity: int) -> None:
    groups = [LoraGroup(8, (8, 8))]
    tables = LoraTables(groups, 4, torch.float16)
    for slot, row in enumerate(ranks):
        tables.set(slot, 64, BlobLayout.of(groups, [row], torch.float16))
    assert rank_capacity(tables, 0) == capacity


class Launches:
    """Stands at the edge to the device: records grids instead of launching."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, int]] = []
        self.shrink = self.expand = self

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        self.grids.append(grid)
        return lambda *_, **__: None


def test_grid_depends_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    group = LoraGroup(32, (200, 40))
    tables = LoraTables([group], 4, torch.float16)
    tables.set(0, 64, BlobLayout.of([group], [[8, 8]], torch.float16))
    x, y = torch.zeros(64, 32), torch.zeros(64, 240)
    recorded = []
    for lengths in ([64, 64, 64, 64], [1, 2, 3, 64], [0, 0, 0, 64], [16, 32, 48, 64]):
        segments = Segments(
            torch.arange(64, dtype=torch.int32),
            torch.tensor([0, *lengths], dtype=torch.int32),
            torch.zeros(4, dtype=torch.int32),
        )
        launches = Launches()
        monkeypatch.setattr(triton_lora, "triton_kernels", lambda launches=launches: launches)
        triton_lora.lora_apply_(y, x, segments, tables, 0)
        recorded.append(launches.grids)
        assert launches.grids[0][0] >= sum(-(-n // MIXED.block_m) for n in torch.tensor([0, *lengths]).diff().tolist())
    assert recorded == [recorded[0]] * 4
    assert recorded[0][1][1] == 2 + 1  # column blocks of 200 and of 40


def test_split_k_leaves_no_program_without_work() -> None:
    pytest.importorskip("triton")
    for in_features in (1, 64, 100, 256, 576, 4096):
        for tiles in BUCKETS:
            split = triton_lora.shrink_constants(in_features, 1, torch.float16, torch.float16, tiles)["SPLIT_K"]
            assert split & (split - 1) == 0
            assert (split - 1) * tiles.block_k < in_features


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "openlora_kernels.triton_kernels", raising=False)
    triton_lora.triton_kernels.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'openlora-node\[cuda\]'"):
        triton_lora.triton_kernels()
