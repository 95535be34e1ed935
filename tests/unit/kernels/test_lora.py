"""Grouped LoRA against its reference over random adapters, and that a row never feels its neighbours."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_kernels import BlobLayout, LoraGroup, LoraTables, Segments, group_weights, huge_empty, lora_apply_
from openlora_kernels import lora as lora_module
from openlora_kernels.native import native, torch_paths
from support.engine_kernels import Adapters, assert_same_bits, randn

DTYPES = st.sampled_from(lora_module.STORAGE_DTYPES)
RANKS = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 8, 16, 33, 256])
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 100, 385, 577])


@st.composite
def cases(draw: st.DrawFn) -> tuple[LoraGroup, Adapters, list[tuple[int, list[int]]], int, int]:
    """A group, adapters in slots, segments of random rows (some rows in none), number of rows, seed."""
    seed = draw(st.integers(0, 1 << 30))
    group = LoraGroup(draw(WIDTHS), tuple(draw(st.lists(WIDTHS, min_size=1, max_size=3))))
    slots = draw(st.integers(1, 4))
    ranks = [[[draw(RANKS) for _ in group.out_features]] for _ in range(slots)]
    adapters = Adapters([group], ranks, draw(DTYPES), seed)
    rows = draw(st.integers(1, 12) | st.sampled_from([60, 200]))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    cuts = sorted(draw(st.lists(st.integers(0, rows), min_size=slots + 1, max_size=slots + 1)))
    segments = [(slot, order[begin:end]) for slot, (begin, end) in enumerate(pairwise(cuts))]
    return group, adapters, segments, rows, seed


@pytest.mark.slow
@settings(max_examples=60)
@given(case=cases())
def test_equals_the_reference(case: tuple[LoraGroup, Adapters, list[tuple[int, list[int]]], int, int]) -> None:
    group, adapters, segments, rows, seed = case
    x, y = randn(seed + 1, rows, group.in_features), randn(seed + 2, rows, group.columns[-1])
    expected = y.clone()
    lora_apply_(y, x, Segments.of(segments), adapters.tables, 0)
    lora_module.reference(expected, x, Segments.of(segments), adapters.tables, 0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_a_row_is_the_same_alone(
    case: tuple[LoraGroup, Adapters, list[tuple[int, list[int]]], int, int], data: st.DataObject
) -> None:
    group, adapters, segments, rows, seed = case
    x, before = randn(seed + 1, rows, group.in_features), randn(seed + 2, rows, group.columns[-1])
    together = before.clone()
    lora_apply_(together, x, Segments.of(segments), adapters.tables, 0)
    slot_of = {row: slot for slot, part in segments for row in part}
    row = data.draw(st.integers(0, rows - 1))
    alone = before[row : row + 1].clone()
    mine = [(slot_of[row], [0])] if row in slot_of else []
    lora_apply_(alone, x[row : row + 1], Segments.of(mine), adapters.tables, 0)
    assert_same_bits(alone[0], together[row])


def test_many_rows_of_one_slot_equal_the_reference() -> None:
    group = LoraGroup(96, (64, 32))
    adapters = Adapters([group], [[[8, 16]]], torch.float16)
    segments = Segments.of([(0, list(range(3, 400)))])
    x, y = randn(1, 400, 96), randn(2, 400, 96)
    expected = y.clone()
    lora_apply_(y, x, segments, adapters.tables, 0)
    lora_module.reference(expected, x, segments, adapters.tables, 0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(y[:3], randn(2, 400, 96)[:3])


def test_strided_rows_touch_nothing_else() -> None:
    group = LoraGroup(10, (7,))
    adapters = Adapters([group], [[[3]]], torch.float32)
    x, memory = randn(1, 5, 13)[:, 1:11], randn(2, 5, 20)
    before, expected = memory.clone(), memory[:, 4:11].clone()
    lora_apply_(memory[:, 4:11], x, Segments.of([(0, [4, 1])]), adapters.tables, 0)
    lora_module.reference(expected, x, Segments.of([(0, [4, 1])]), adapters.tables, 0)
    torch.testing.assert_close(memory[:, 4:11], expected, rtol=1e-5, atol=1e-5)
    memory[:, 4:11] = before[:, 4:11]
    assert torch.equal(memory, before)


def test_torch_path_gives_the_same() -> None:
    group = LoraGroup(20, (12, 9))
    adapters = Adapters([group], [[[4, 2]], [[0, 8]]], torch.float16)
    segments = Segments.of([(0, [0, 3]), (1, [2])])
    x, y = randn(1, 4, 20), randn(2, 4, 21)
    expected = y.clone()
    lora_apply_(y, x, segments, adapters.tables, 0)
    with torch_paths():
        lora_apply_(expected, x, segments, adapters.tables, 0)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def test_a_cleared_slot_and_no_segments_add_nothing() -> None:
    group = LoraGroup(8, (8,))
    adapters = Adapters([group], [[[4]]], torch.float16)
    y = randn(2, 3, 8)
    lora_apply_(y, randn(1, 3, 8), Segments.of([]), adapters.tables, 0)
    adapters.tables.clear(0)
    lora_apply_(y, randn(1, 3, 8), Segments.of([(0, [0, 1, 2])]), adapters.tables, 0)
    assert torch.equal(y, randn(2, 3, 8))
    assert adapters.tables.weights(0, 0) is None


def test_views_write_what_tables_read() -> None:
    groups = [LoraGroup(6, (5, 3)), LoraGroup(5, (4,))]
    layout = BlobLayout.of(groups, [[2, 1], [0]], torch.float16)
    blob = huge_empty(layout.nbytes)
    written = group_weights(blob, layout, groups[0], 0, torch.float16)
    written.a.copy_(randn(0, 3, 6))
    written.b[1].fill_(2.0)
    written.scale.fill_(0.5)
    tables = LoraTables(groups, 3, torch.float16)
    tables.set(1, blob.data_ptr(), layout)
    read = tables.weights(0, 1)
    assert read is not None
    assert torch.equal(read.a, written.a)
    assert torch.equal(read.b[1], written.b[1])
    assert [tuple(b.shape) for b in read.b] == [(2, 5), (1, 3)]
    assert torch.equal(read.scale, written.scale)
    assert tables.weights(1, 1) is None
    assert tables.a[1, 1] == 0
    assert not np.any(np.concatenate((layout.a, layout.b, layout.scale)) % lora_module.ALIGNMENT)


@pytest.mark.parametrize("ranks", [[[1]], [[1, 2], [1]], [[-1, 1]]])
def test_layouts_that_do_not_match_the_groups_are_refused(ranks: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="ranks"):
        BlobLayout.of([LoraGroup(4, (4, 4))], ranks, torch.float16)


def test_what_does_not_fit_is_refused() -> None:
    group = LoraGroup(8, (8,))
    adapters = Adapters([group], [[[4]]], torch.float16)
    with pytest.raises(ValueError, match="do not fit group"):
        lora_apply_(randn(0, 3, 8), randn(1, 3, 9), Segments.of([(0, [0])]), adapters.tables, 0)
    with pytest.raises(ValueError, match="stored as"):
        LoraTables([group], 1, torch.float64)
    other = BlobLayout.of([group, group], [[1], [1]], torch.float16)
    with pytest.raises(ValueError, match="other groups"):
        adapters.tables.set(0, 0, other)


@pytest.mark.skipif(native() is None, reason="torch raises its own errors for indices")
@pytest.mark.parametrize("segments", [[(0, [3])], [(0, [-1])], [(1, [0])], [(-1, [0])]])
def test_indices_out_of_range_are_refused_before_anything_is_read(segments: list[tuple[int, list[int]]]) -> None:
    adapters = Adapters([LoraGroup(8, (8,))], [[[4]]], torch.float16)
    y = randn(0, 3, 8)
    with pytest.raises(ValueError, match="out of range"):
        lora_apply_(y, randn(1, 3, 8), Segments.of(segments), adapters.tables, 0)
    assert torch.equal(y, randn(0, 3, 8))
