"""Paged attention against its reference over random ragged batches; chunked equals whole, together equals alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_kernels import attention, paged_attention, torch_paths, write_kv
from openlora_kernels.native import native
from support.engine_kernels import Ragged, assert_same_bits, ragged, randn

OPTIONS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([0.125, 0.4]),
        "window": st.none() | st.sampled_from([1, 3, 20, 128, 200]),
        "softcap": st.none() | st.just(4.0),
    }
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ragged, torch.Tensor, torch.Tensor | None]:
    """A ragged batch, queries [T, H, D] with gaps between rows, sinks."""
    seed = draw(st.integers(0, 1 << 30))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5, 8]))
    head_dim = draw(st.sampled_from([8, 16, 40, 64, 128]))
    lengths = draw(st.lists(st.integers(1, 40) | st.sampled_from([127, 128, 129, 300, 520]), min_size=1, max_size=3))
    queries = [draw(st.sampled_from([1, min(length, 7), min(length, 60)])) for length in lengths]
    block_size = draw(st.sampled_from([1, 4, 16]))
    batch = ragged(seed, lengths, queries, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
    heads = kv_heads * group
    sinks = randn(seed + 2, heads) if draw(st.booleans()) else None
    return batch, randn(seed + 1, batch.num_tokens, heads + 1, head_dim)[:, :heads] * 2, sinks


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@settings(max_examples=50)
@given(case=cases(), options=OPTIONS)
def test_equals_the_reference(
    case: tuple[Ragged, torch.Tensor, torch.Tensor | None], options: dict[str, float | int | None]
) -> None:
    data, q, sinks = case
    arguments = (q, data.k_cache, data.v_cache, data.batch)
    expected = attention.reference(*arguments, **options, sinks=sinks)  # type: ignore[arg-type]
    close(paged_attention(*arguments, **options, sinks=sinks), expected)  # type: ignore[arg-type]
    with torch_paths():
        close(paged_attention(*arguments, **options, sinks=sinks), expected)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=50)
@given(case=cases(), options=OPTIONS, draw=st.data(), threads=st.integers(1, 2))
def test_a_chunk_alone_has_the_bits_of_the_whole(
    case: tuple[Ragged, torch.Tensor, torch.Tensor | None],
    options: dict[str, float | int | None],
    draw: st.DataObject,
    threads: int,
) -> None:
    data, q, sinks = case
    whole = paged_attention(q, data.k_cache, data.v_cache, data.batch, **options, sinks=sinks)  # type: ignore[arg-type]
    sequence = draw.draw(st.integers(0, data.batch.seq_lens.shape[0] - 1))
    count = int(data.batch.cu_seqlens_q[sequence + 1] - data.batch.cu_seqlens_q[sequence])
    begin = draw.draw(st.integers(0, count - 1))
    end = draw.draw(st.integers(begin + 1, count))
    first, chunk = data.rows(sequence, begin, end)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        part = q[first : first + end - begin]
        alone = paged_attention(part, data.k_cache, data.v_cache, chunk, **options, sinks=sinks)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert_same_bits(alone, whole[first : first + end - begin])


def test_a_whole_prompt_equals_the_reference() -> None:
    data = ragged(0, [300, 70], [300, 70], kv_heads=2, head_dim=32, block_size=16)
    arguments = (randn(1, 370, 6, 32), data.k_cache, data.v_cache, data.batch)
    close(paged_attention(*arguments, scale=0.2), attention.reference(*arguments, scale=0.2))


def test_a_long_context_split_over_threads_equals_the_reference() -> None:
    data = ragged(0, [3000], [1], kv_heads=1, head_dim=64, block_size=16)
    q = randn(1, 1, 4, 64) * 3
    arguments = (q, data.k_cache, data.v_cache, data.batch)
    close(paged_attention(*arguments, scale=0.125), attention.reference(*arguments, scale=0.125))


def test_a_soft_cap_is_applied_to_large_scores() -> None:
    data = ragged(0, [40], [40], kv_heads=1, head_dim=16, block_size=4)
    q = randn(1, 40, 2, 16) * 100
    arguments = (q, data.k_cache, data.v_cache, data.batch)
    capped = paged_attention(*arguments, scale=1.0, softcap=5.0)
    close(capped, attention.reference(*arguments, scale=1.0, softcap=5.0))
    assert (capped - paged_attention(*arguments, scale=1.0)).abs().max() > 0.1


def test_a_head_width_that_is_no_multiple_of_eight_takes_the_torch_path() -> None:
    data = ragged(0, [9, 3], [9, 1], kv_heads=2, head_dim=12, block_size=4)
    arguments = (randn(1, 10, 4, 12), data.k_cache, data.v_cache, data.batch)
    close(paged_attention(*arguments, scale=0.3), attention.reference(*arguments, scale=0.3))


@pytest.mark.parametrize("forced", [False, True])
def test_keys_and_values_go_where_the_mapping_says(forced: bool) -> None:
    data = ragged(0, [9, 5], [4, 1], kv_heads=2, head_dim=8, block_size=4)
    key, value = (randn(seed, 5, 3, 8)[:, :2] for seed in (1, 2))
    expected = [cache.clone() for cache in (data.k_cache, data.v_cache)]
    for cache, source in zip(expected, (key, value), strict=True):
        cache.view(-1, 2, 8)[data.batch.slot_mapping] = source
    if forced:
        with torch_paths():
            write_kv(key, value, data.k_cache, data.v_cache, data.batch)
    else:
        write_kv(key, value, data.k_cache, data.v_cache, data.batch)
    for actual, wanted in zip((data.k_cache, data.v_cache), expected, strict=True):
        assert torch.equal(actual.nan_to_num(), wanted.nan_to_num())


@pytest.mark.skipif(native() is None, reason="torch raises its own errors for indices")
def test_blocks_and_slots_out_of_range_are_refused_before_anything_is_read() -> None:
    data = ragged(0, [9], [2], kv_heads=1, head_dim=8, block_size=4)
    q, tables, lengths = randn(1, 2, 2, 8), data.batch.block_tables.clone(), data.batch.seq_lens
    wrong = [
        replace(data.batch, block_tables=tables.clone().fill_(99)),
        replace(data.batch, block_tables=tables.clone().fill_(-1)),
        replace(data.batch, seq_lens=lengths + 90),
        replace(data.batch, seq_lens=lengths * 0 + 1),
        replace(data.batch, cu_seqlens_q=torch.tensor([0, 3], dtype=torch.int32)),
    ]
    for batch in wrong:
        with pytest.raises(ValueError, match="out of range"):
            paged_attention(q, data.k_cache, data.v_cache, batch, scale=1.0)
    outside = replace(data.batch, slot_mapping=torch.tensor([0, 4 * data.k_cache.shape[0]]))
    with pytest.raises(ValueError, match="out of range"):
        write_kv(randn(1, 2, 1, 8), randn(2, 2, 1, 8), data.k_cache, data.v_cache, outside)
