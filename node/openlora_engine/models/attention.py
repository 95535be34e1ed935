"""Paged attention as transformers' models call it: registered once, used by every architecture that is not fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from openlora_kernels import paged_attention, write_kv

from .context import current

PAGED = "openlora_paged"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query [1, H, T, D], key and value [1, KV, T, D] of one flattened batch → [1, T, H, D]. There is no mask."""
    context = current()
    k_cache, v_cache = context.kv_caches[module.layer_idx]
    write_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k_cache, v_cache, context.batch)
    out = paged_attention(
        query[0].transpose(0, 1),
        k_cache,
        v_cache,
        context.batch,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=getattr(module, "sinks", None),
    )
    return out.unsqueeze(0), None


def register() -> str:
    """Make the implementation known to transformers; returns its name. Repeating it changes nothing.

    No mask function goes with it: transformers then builds no mask, and causality and windows are the kernel's.
    """
    AttentionInterface.register(PAGED, _attend)
    return PAGED
