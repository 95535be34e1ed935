"""Causal attention over a paged KV cache for a ragged batch: prefill chunks and decode rows in one call.

Follows vLLM's PagedAttention (arXiv 2309.06180) in layout and FlashAttention (arXiv 2205.14135) in that no score matrix
of a whole sequence exists and nothing is gathered or padded. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from .native import FLOAT, INT, POINTER, function, num_threads, takes


@dataclass(frozen=True)
class AttentionBatch:
    """A flattened ragged batch of S sequences, T tokens; all tensors contiguous on the cache's device.

    Sequence s has query rows [cu_seqlens_q[s], cu_seqlens_q[s + 1]); its last row sees seq_lens[s] keys (computed and
    scheduled together), the row before one fewer, and so on.
    """

    cu_seqlens_q: Tensor
    """int32 [S + 1]"""
    seq_lens: Tensor
    """int32 [S]"""
    block_tables: Tensor
    """int32 [S, max_blocks]: which cache block holds keys [i * block_size, (i + 1) * block_size)"""
    slot_mapping: Tensor
    """int64 [T]: block * block_size + offset where each row's key and value go"""
    positions: Tensor
    """int64 [T]"""
    block_size: int
    max_query_len: int
    max_seq_len: int

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Of cu_seqlens_q, seq_lens, block_tables and slot_mapping; S, T, max_blocks: what every native call takes."""
        tensors = (self.cu_seqlens_q, self.seq_lens, self.block_tables, self.slot_mapping)
        sizes = (self.seq_lens.shape[0], self.slot_mapping.shape[0], self.block_tables.shape[1])
        return (*(tensor.data_ptr() for tensor in tensors), *sizes)


_attention = function("ol_paged_attention", *[POINTER, INT] * 2, *[POINTER] * 6, *[INT] * 9, FLOAT, FLOAT, INT)
_write_kv = function("ol_write_kv", *[POINTER, INT] * 2, *[POINTER] * 3, *[INT] * 4)


def write_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
    """Put key and value [T, KV, D] into the caches [num_blocks, block_size, KV, D] at batch.slot_mapping.

    Raises ValueError where a slot lies outside the cache.
    """
    if key.is_cuda:
        from . import flash

        flash.write_kv(key, value, k_cache, v_cache, batch)
        return
    if not (takes(key, value, k_cache, v_cache) and _heads_dense(key) and _heads_dense(value)):
        for source, cache in ((key, k_cache), (value, v_cache)):
            cache.view(-1, *cache.shape[2:])[batch.slot_mapping] = source
        return
    _write_kv(
        *(key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0)),
        *(k_cache.data_ptr(), v_cache.data_ptr(), batch.slot_mapping.data_ptr()),
        *(key.shape[0], key.shape[1] * key.shape[2], k_cache.shape[0] * k_cache.shape[1], num_threads()),
    )


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(softcap(scale * q k^T)) v over the cache: q [T, H, D] -> [T, H, D], H a multiple of the cache's KV heads.

    window: a row at position p sees keys in (p - window, p], as Hugging Face's sliding_window. softcap: scores become
    softcap * tanh(score / softcap). sinks: [H], a logit a head that takes part in the softmax's sum and has no value.
    CPU: float32; D a multiple of 8 for the native path. A row's result is bit-equal whatever else is in the batch and
    however its prompt was cut into chunks (native path). Raises ValueError where a block lies outside the cache.
    """
    if q.is_cuda:
        from . import flash

        return flash.paged_attention(
            q, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
    if not (takes(q, k_cache, v_cache) and q.shape[2] % 8 == 0 and _heads_dense(q)):
        return torch_attention(q, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks)
    out = torch.empty(q.shape)
    num_blocks, block_size, kv_heads, _ = k_cache.shape
    sinks = sinks.float().contiguous() if sinks is not None else None
    _attention(
        *(q.data_ptr(), q.stride(0), out.data_ptr(), out.stride(0), k_cache.data_ptr(), v_cache.data_ptr()),
        *(batch.cu_seqlens_q.data_ptr(), batch.seq_lens.data_ptr(), batch.block_tables.data_ptr()),
        *(sinks.data_ptr() if sinks is not None else None, batch.seq_lens.shape[0], q.shape[0]),
        *(batch.block_tables.shape[1], num_blocks, block_size, q.shape[1], kv_heads, q.shape[2]),
        *(window or 0, scale, softcap or 0.0, num_threads()),
    )
    return out


def torch_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Plain torch, a sequence at a time: torch's SDPA where it can, `reference` for soft-caps and sinks."""
    if softcap is not None or sinks is not None:
        return reference(q, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks)
    out = torch.empty_like(q)
    for start, end, keys, values, visible in _sequences(q, k_cache, v_cache, batch, window):
        rows, k, v = (t.transpose(0, 1)[None] for t in (q[start:end], keys, values))
        result = F.scaled_dot_product_attention(rows, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
        out[start:end] = result[0].transpose(0, 1)
    return out


def reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The specification: every score written out."""
    out = torch.empty_like(q)
    group = q.shape[1] // k_cache.shape[2]
    for start, end, keys, values, visible in _sequences(q, k_cache, v_cache, batch, window):
        k, v = (t.float().repeat_interleave(group, dim=1) for t in (keys, values))
        scores = torch.einsum("thd,lhd->htl", q[start:end].float(), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            sink = sinks.float()[:, None, None].expand(-1, end - start, 1)
            weights = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out[start:end] = torch.einsum("htl,lhd->thd", weights, v).to(q.dtype)
    return out


def _sequences(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, window: int | None
) -> list[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Per sequence: its query rows [start, end), keys and values [L, KV, D], and which keys each row sees [rows, L]."""
    sequences = []
    bounds = batch.cu_seqlens_q.tolist()
    for s, length in enumerate(batch.seq_lens.tolist()):
        start, end = bounds[s], bounds[s + 1]
        if start == end:
            continue
        blocks = batch.block_tables[s, : -(-length // batch.block_size)].long()
        keys, values = (cache[blocks].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        position = torch.arange(length - (end - start), length, device=q.device)[:, None]
        key = torch.arange(length, device=q.device)[None]
        visible = key <= position
        if window is not None:
            visible &= key > position - window
        sequences.append((start, end, keys, values, visible))
    return sequences


def _heads_dense(x: Tensor) -> bool:
    """[T, H, D] whose heads follow each other."""
    return x.stride(1) == x.shape[2] or x.shape[1] == 1
