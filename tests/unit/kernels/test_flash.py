"""CUDA's attention: the SDPA path equals the reference; flash-attn is called as its documentation and checks demand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openlora_kernels import AttentionBatch, attention, flash

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_memory_between_tests() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    flash._import.cache_clear()
    flash.unfit.cache_clear()


@pytest.fixture
def no_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)


class Calls:
    """flash-attn's two paged functions: its signatures and its checks, computed by the reference."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def module(self, version: str = "2.8.3") -> ModuleType:
        module = ModuleType("flash_attn")
        module.__version__ = version  # type: ignore[attr-defined]
        module.flash_attn_varlen_func = self.varlen  # type: ignore[attr-defined]
        module.flash_attn_with_kvcache = self.kvcache  # type: ignore[attr-defined]
        return module

    def varlen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,
    ) -> Tensor:
        self.names.append("varlen")
        assert causal
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert cu_seqlens_q.is_contiguous()
        assert cu_seqlens_k.is_contiguous()
        assert cu_seqlens_q.shape == cu_seqlens_k.shape
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        assert max_seqlen_k == int(cu_seqlens_k.diff().max())
        return self.attend(q, k, v, cu_seqlens_q, cu_seqlens_k.diff(), block_table, softmax_scale, window_size, softcap)

    def kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        cache_seqlens: Tensor | None = None,
        cache_batch_idx: Tensor | None = None,
        cache_leftpad: Tensor | None = None,
        block_table: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        alibi_slopes: Tensor | None = None,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
    ) -> Tensor:
        self.names.append("kvcache")
        assert causal
        assert cache_seqlens is not None
        assert cache_seqlens.dtype == torch.int32
        assert q.dim() == 4
        assert q.shape[:2] == (cache_seqlens.shape[0], 1)
        starts = torch.arange(q.shape[0] + 1, dtype=torch.int32)
        out = self.attend(
            q[:, 0], k_cache, v_cache, starts, cache_seqlens, block_table, softmax_scale, window_size, softcap
        )
        return out[:, None]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor,
        seq_lens: Tensor,
        block_table: Tensor | None,
        scale: float | None,
        window_size: tuple[int, int],
        softcap: float,
    ) -> Tensor:
        """The checks of csrc/flash_attn/flash_api.cpp."""
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert q.dtype == k.dtype == v.dtype
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert q.shape[-1] <= 256
        assert q.shape[-1] % 8 == 0
        assert q.shape[1] % k.shape[2] == 0
        assert block_table is not None
        assert block_table.dtype == torch.int32
        assert block_table.stride(-1) == 1
        assert block_table.shape[0] == seq_lens.shape[0]
        assert k.shape[1] % 256 == 0
        left, right = window_size
        assert (left < 0 and right <= 0) or (left >= 0 and right == 0)
        assert scale is not None
        batch = AttentionBatch(starts, seq_lens, block_table, starts.long(), starts.long(), k.shape[1], 0, 0)
        window = None if left < 0 else left + 1
        return attention.reference(q, k, v, batch, scale=scale, window=window, softcap=softcap or None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "flash_attn", calls.module())
    return calls


def batch_of(spans: list[tuple[int, int]], block_size: int, generator: torch.Generator) -> tuple[AttentionBatch, int]:
    """A batch of (rows, keys) sequences whose blocks lie scattered in the cache; the cache's number of blocks."""
    needed = [-(-keys // block_size) for _, keys in spans]
    num_blocks = sum(needed) + 2
    order = torch.randperm(num_blocks, generator=generator)
    tables = torch.zeros(len(spans), max(needed), dtype=torch.int32)
    used = 0
    for s, count in enumerate(needed):
        tables[s, :count] = order[used : used + count]
        used += count
    positions = [torch.arange(keys - rows, keys) for rows, keys in spans]
    slots = [tables[s, p // block_size].long() * block_size + p % block_size for s, p in enumerate(positions)]
    rows = torch.tensor([0, *(rows for rows, _ in spans)])
    batch = AttentionBatch(
        cu_seqlens_q=rows.cumsum(0).to(torch.int32),
        seq_lens=torch.tensor([keys for _, keys in spans], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        positions=torch.cat(positions),
        block_size=block_size,
        max_query_len=max(rows for rows, _ in spans),
        max_seq_len=max(keys for _, keys in spans),
    )
    return batch, num_blocks


def tensors(
    batch: AttentionBatch, num_blocks: int, heads: int, kv_heads: int, head_dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    cache = (num_blocks, batch.block_size, kv_heads, head_dim)
    q = torch.randn(heads, batch.slot_mapping.shape[0], head_dim, generator=generator).transpose(0, 1)  # as models do
    return q, torch.randn(cache, generator=generator), torch.randn(cache, generator=generator)


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int]]:
    keys = draw(st.lists(st.integers(1, 70), min_size=1, max_size=4))
    return [(draw(st.integers(1, length)), length) for length in keys]


@pytest.mark.slow
@settings(max_examples=50)
@given(
    spans=spans(),
    block_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.floats(0.5, 30),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sdpa_path_equals_the_reference(
    spans: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    sinks: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, num_blocks = batch_of(spans, block_size, generator)
    q, k_cache, v_cache = tensors(batch, num_blocks, *heads, 8, generator)
    sink = torch.randn(heads[0], generator=generator) if sinks else None
    options = {"scale": 0.6, "window": window, "softcap": softcap, "sinks": sink}
    found = flash.paged_attention(q, k_cache, v_cache, batch, **options)  # type: ignore[arg-type]
    expected = attention.reference(q, k_cache, v_cache, batch, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_long_written_out_scores_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "MAX_SCORES", 4 * 50 * 3)  # three rows at a time
    generator = torch.Generator().manual_seed(1)
    batch, num_blocks = batch_of([(20, 50), (1, 7)], 16, generator)
    q, k_cache, v_cache = tensors(batch, num_blocks, 4, 2, 16, generator)
    found = flash.paged_attention(q, k_cache, v_cache, batch, scale=1.0, softcap=3.0)
    torch.testing.assert_close(found, attention.reference(q, k_cache, v_cache, batch, scale=1.0, softcap=3.0))


def test_lengths_are_read_once_a_batch_and_never_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    batch, num_blocks = batch_of([(3, 9)], 4, generator)
    other = replace(batch, seq_lens=batch.seq_lens - 4)
    q, k_cache, v_cache = tensors(batch, num_blocks, 2, 2, 8, generator)
    for each in (batch, other, batch):
        found = flash.paged_attention(q, k_cache, v_cache, each, scale=1.0)
        torch.testing.assert_close(found, attention.reference(q, k_cache, v_cache, each, scale=1.0))
    first = flash._host_lengths(batch)
    assert flash._host_lengths(batch)[0] is first[0]


def test_write_kv_puts_rows_at_their_slots() -> None:
    generator = torch.Generator().manual_seed(3)
    batch, num_blocks = batch_of([(5, 9), (1, 3)], 4, generator)
    _, k_cache, v_cache = tensors(batch, num_blocks, 2, 2, 8, generator)
    key, value = (torch.randn(6, 2, 8, generator=generator) for _ in range(2))
    expected_k, expected_v = k_cache.clone(), v_cache.clone()
    for row, slot in enumerate(batch.slot_mapping.tolist()):
        expected_k.view(-1, 2, 8)[slot] = key[row]
        expected_v.view(-1, 2, 8)[slot] = value[row]
    flash.write_kv(key.double(), value, k_cache, v_cache, batch)  # a wider key is stored in the cache's dtype
    assert torch.equal(k_cache, expected_k)
    assert torch.equal(v_cache, expected_v)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    spans=spans(), window=st.none() | st.integers(1, 40), softcap=st.none() | st.floats(0.5, 30), decode=st.booleans()
)
def test_flash_attn_is_called_as_it_demands(
    spans: list[tuple[int, int]], window: int | None, softcap: float | None, decode: bool
) -> None:
    calls = Calls()
    with pytest.MonkeyPatch.context() as patch:
        forget()
        patch.setitem(sys.modules, "flash_attn", calls.module())
        generator = torch.Generator().manual_seed(4)
        batch, num_blocks = batch_of([(1, keys) for _, keys in spans] if decode else spans, 256, generator)
        q, k_cache, v_cache = (t.bfloat16() for t in tensors(batch, num_blocks, 4, 2, 8, generator))
        found = flash.paged_attention(q, k_cache, v_cache, batch, scale=0.3, window=window, softcap=softcap)
    expected = attention.reference(q, k_cache, v_cache, batch, scale=0.3, window=window, softcap=softcap)
    assert torch.equal(found, expected)
    assert calls.names == ["kvcache" if batch.max_query_len == 1 else "varlen"]


def test_sinks_go_to_sdpa_even_with_flash_attn(calls: Calls) -> None:
    generator = torch.Generator().manual_seed(5)
    batch, num_blocks = batch_of([(3, 9)], 256, generator)
    q, k_cache, v_cache = (t.half() for t in tensors(batch, num_blocks, 2, 2, 8, generator))
    flash.paged_attention(q, k_cache, v_cache, batch, scale=1.0, sinks=torch.zeros(2))
    assert calls.names == []


def test_no_rows_no_call(calls: Calls) -> None:
    batch, num_blocks = batch_of([(1, 9)], 256, torch.Generator())
    q, k_cache, v_cache = (t.half() for t in tensors(batch, num_blocks, 2, 2, 8, torch.Generator()))
    assert flash.paged_attention(q[:0], k_cache, v_cache, batch, scale=1.0).shape == (0, 2, 8)
    assert calls.names == []


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "reason"),
    [
        (torch.bfloat16, 64, 256, None),
        (torch.float16, 256, 512, None),
        (torch.float32, 64, 256, "--dtype"),
        (torch.bfloat16, 64, 16, "--block-size 256"),
        (torch.bfloat16, 264, 256, "head sizes"),
        (torch.bfloat16, 60, 256, "head sizes"),
    ],
)
@pytest.mark.usefixtures("calls")
def test_unfit_names_the_remedy(dtype: torch.dtype, head_dim: int, block_size: int, reason: str | None) -> None:
    found = flash.unfit(CPU, dtype, head_dim, block_size)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.usefixtures("calls")
def test_preferred_block_size_is_what_flash_attn_demands() -> None:
    assert flash.preferred_block_size(CPU, torch.bfloat16, 64) == 256
    assert flash.preferred_block_size(CPU, torch.float32, 64) == 16


@pytest.mark.usefixtures("no_flash_attn")
def test_without_flash_attn_it_says_what_to_install() -> None:
    assert "pip install 'openlora-node[cuda]'" in str(flash.unfit(CPU, torch.bfloat16, 64, 256))
    assert flash.preferred_block_size(CPU, torch.bfloat16, 64) == 16


def test_an_old_or_broken_flash_attn_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", Calls().module("2.5.9.post1"))
    assert "2.5.9.post1" in str(flash.unfit(CPU, torch.bfloat16, 64, 256))
    forget()

    def broken(name: str) -> ModuleType:
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(flash.importlib, "import_module", broken)
    assert "undefined symbol" in str(flash.unfit(CPU, torch.bfloat16, 64, 256))
