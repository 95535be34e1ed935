"""Rotary position embedding, rotate-half form (arXiv 2104.09864, as Hugging Face lays it out), in place.

cos and sin come per row from the model's own rotary module, so every scaling variant comes with them. Knows no model.
"""

from __future__ import annotations

from torch import Tensor

from .attention import AttentionBatch, write_kv
from .native import INT, POINTER, function, num_threads, takes

_rope = function("ol_rope", POINTER, INT, POINTER, POINTER, *[INT] * 6)


def rope_(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int | None = None) -> None:
    """Rotate the first `rotary_dim` (default: all) dims of x [T, H, D] in place.

    cos, sin: [T, rotary_dim / 2] or [T, rotary_dim] (halves equal, as Hugging Face makes them).
    """
    rotary_dim = x.shape[2] if rotary_dim is None else rotary_dim
    if rotary_dim == 0:
        return
    if cos.shape[1] not in (rotary_dim, rotary_dim // 2) or cos.shape != sin.shape or cos.shape[0] != x.shape[0]:
        raise ValueError(f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} do not fit {rotary_dim} rotary dims")
    if not (takes(x, cos, sin) and x.stride(1) == x.shape[2] and cos.stride() == sin.stride()):
        reference(x, cos, sin, rotary_dim)
        return
    _rope(
        *(x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), cos.stride(0)),
        *(*x.shape, rotary_dim, num_threads()),
    )


def rope_and_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    rotary_dim: int | None = None,
) -> None:
    """Rotate q [T, H, D] and k [T, KV, D] in place, then put k and v into the cache."""
    rope_(q, cos, sin, rotary_dim)
    rope_(k, cos, sin, rotary_dim)
    write_kv(k, v, k_cache, v_cache, batch)


def reference(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int) -> None:
    """The specification."""
    half = rotary_dim // 2
    cos, sin = (table[:, None, :half].to(x.dtype) for table in (cos, sin))
    first, second = x[..., :half].clone(), x[..., half:rotary_dim].clone()
    x[..., :half] = first * cos - second * sin
    x[..., half:rotary_dim] = second * cos + first * sin
