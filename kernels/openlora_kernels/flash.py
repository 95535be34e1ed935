"""Paged attention on CUDA: flash-attn's two paged calls where it is installed and fits, torch's SDPA otherwise.

flash-attn 2 (arXiv 2307.08691) reads the cache through the block table, so nothing is gathered: decode steps call
`flash_attn_with_kvcache` (split over keys), steps with prompt chunks call `flash_attn_varlen_func`. What it asks for
(csrc/flash_attn/flash_api.cpp of v2.5 to v2.8): KV blocks of a multiple of 256 tokens, float16 or bfloat16, head sizes
up to 256 in multiples of 8, compute capability 8.0; it knows no attention sinks. `unfit` says which of these fails,
`preferred_block_size` which block size a cache should have.

The SDPA path takes any block size and dtype, a sequence at a time: it gathers the keys that the sequence's rows can see
and reads the lengths on the host once a batch, so it cannot be captured in a CUDA graph.

Not run on a device yet: the SDPA path is tested on CPU tensors, the calls to flash-attn against its documented
signature and checks.
"""

from __future__ import annotations

import importlib
import weakref
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from .attention import AttentionBatch

FLASH_BLOCK_MULTIPLE = 256
"""flash-attn 2 refuses paged caches whose block size this does not divide."""

SDPA_BLOCK_SIZE = 16
MAX_SCORES = 1 << 26
"""Elements of a written-out score matrix (soft-caps, sinks): more query rows than fit are taken in turns."""


def write_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
    """Put key and value [T, KV, D] into the caches [num_blocks, block_size, KV, D] at batch.slot_mapping."""
    for source, target in ((key, k_cache), (value, v_cache)):
        target.view(-1, *target.shape[2:]).index_copy_(0, batch.slot_mapping, source.to(target.dtype))


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
    """q [T, H, D] -> [T, H, D]; see attention.paged_attention for what the arguments mean."""
    if q.shape[0] == 0:
        return torch.empty_like(q)
    if sinks is None and unfit(q.device, q.dtype, q.shape[2], batch.block_size) is None:
        return _flash(q, k_cache, v_cache, batch, scale, window, softcap)
    return _sdpa(q, k_cache, v_cache, batch, scale, window, softcap, sinks)


@cache
def unfit(device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """Why flash-attn does not serve such a cache, a sentence with the remedy; None where it does."""
    module = _import()
    if isinstance(module, str):
        return module
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "flash-attn needs compute capability 8.0 (Ampere) or newer"
    if dtype not in (torch.float16, torch.bfloat16):
        return "flash-attn computes in float16 or bfloat16: set --dtype"
    if head_dim > 256 or head_dim % 8:
        return f"flash-attn takes head sizes up to 256 in multiples of 8, not {head_dim}"
    if block_size % FLASH_BLOCK_MULTIPLE:
        return f"flash-attn takes KV blocks of a multiple of 256 tokens: set --block-size 256 instead of {block_size}"
    return None


def preferred_block_size(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """256 tokens where flash-attn can then serve the model, else 16, which wastes less of a sequence's last block."""
    return SDPA_BLOCK_SIZE if unfit(device, dtype, head_dim, FLASH_BLOCK_MULTIPLE) else FLASH_BLOCK_MULTIPLE


def _flash(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    flash_attn = _import()
    assert isinstance(flash_attn, ModuleType), "unfit lets nothing pass without flash-attn"
    # flash-attn counts the keys left of a row; our window counts the row itself too.
    left = -1 if window is None else window - 1
    out: Tensor
    if batch.max_query_len == 1 and q.shape[0] == batch.seq_lens.shape[0]:
        out = flash_attn.flash_attn_with_kvcache(
            q.unsqueeze(1),
            k_cache,
            v_cache,
            cache_seqlens=batch.seq_lens,
            block_table=batch.block_tables,
            softmax_scale=scale,
            causal=True,
            window_size=(left, -1 if window is None else 0),
            softcap=softcap or 0.0,
        )
        return out.squeeze(1)
    out = flash_attn.flash_attn_varlen_func(
        q,
        k_cache,
        v_cache,
        cu_seqlens_q=batch.cu_seqlens_q,
        # Recomputed each layer: a cached copy would go stale in a replayed graph whose batch is written in place.
        cu_seqlens_k=F.pad(batch.seq_lens.cumsum(0, dtype=torch.int32), (1, 0)),
        max_seqlen_q=batch.max_query_len,
        max_seqlen_k=batch.max_seq_len,
        softmax_scale=scale,
        causal=True,
        window_size=(left, -1 if window is None else 0),
        softcap=softcap or 0.0,
        block_table=batch.block_tables,
    )
    return out


def _sdpa(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    out = torch.empty_like(q)
    bounds, lengths = _host_lengths(batch)
    for s, length in enumerate(lengths):
        start, end = bounds[s], bounds[s + 1]
        num_rows = end - start
        if num_rows == 0:
            continue
        # The oldest key that the first row still sees; with it cut off, a single row sees all that is left.
        first = 0 if window is None else max(0, length - num_rows - window + 1)
        blocks = batch.block_tables[s, first // batch.block_size : -(-length // batch.block_size)]
        skipped = first % batch.block_size
        keys, values = (
            cache.index_select(0, blocks).flatten(0, 1)[skipped : skipped + length - first]
            for cache in (k_cache, v_cache)
        )
        visible = None if num_rows == 1 else _visible(num_rows, length - first, window, q.device)
        if softcap is None and sinks is None:
            rows, k, v = (t.transpose(0, 1)[None] for t in (q[start:end], keys, values))
            attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
            out[start:end] = attended[0].transpose(0, 1)
            continue
        step = max(1, MAX_SCORES // (q.shape[1] * (length - first)))
        for row in range(0, num_rows, step):
            part = None if visible is None else visible[row : row + step]
            rows = q[start + row : min(start + row + step, end)]
            out[start + row : start + row + rows.shape[0]] = _written_out(
                rows, keys, values, part, scale, softcap, sinks
            )
    return out


def _visible(num_rows: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """bool [rows, keys], the last row at the last key."""
    position = torch.arange(length - num_rows, length, device=device)[:, None]
    key = torch.arange(length, device=device)[None]
    visible = key <= position
    return visible if window is None else visible & (key > position - window)


def _written_out(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """q [rows, H, D], keys and values [L, KV, D] -> [rows, H, D] in float32, for what SDPA has no argument for."""
    kv_heads = keys.shape[1]
    grouped = q.float().view(q.shape[0], kv_heads, -1, q.shape[2])
    scores = torch.einsum("rkgd,lkd->kgrl", grouped, keys.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, q.shape[0], 1)
        weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("kgrl,lkd->rkgd", weights, values.float()).flatten(1, 2).to(q.dtype)


class _Host:
    """The last batch and its lengths on the host: one wait for the device a step instead of one a layer."""

    last: tuple[weakref.ref[AttentionBatch], list[int], list[int]] | None = None


def _host_lengths(batch: AttentionBatch) -> tuple[list[int], list[int]]:
    """cu_seqlens_q and seq_lens. A batch is a value: its tensors do not change while layers use it."""
    last = _Host.last
    if last is None or last[0]() is not batch:
        last = _Host.last = (weakref.ref(batch), batch.cu_seqlens_q.tolist(), batch.seq_lens.tolist())
    return last[1:]


@cache
def _import() -> ModuleType | str:
    """flash-attn, or why there is none."""
    try:
        module = importlib.import_module("flash_attn")
    except ModuleNotFoundError:
        return "flash-attn is not installed: pip install 'openlora-node[cuda]'"
    except (ImportError, OSError) as error:
        return f"flash-attn does not load ({error}): install one built for this torch and CUDA"
    version = str(getattr(module, "__version__", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (2, 6):
        return f"flash-attn {version} has no soft-caps: pip install -U 'flash-attn>=2.7'"
    return module
