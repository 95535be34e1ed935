"""RMSNorm (arXiv 1910.07467) over the last dimension. Knows no model; Gemma's (1 + w) is folded into the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import FLOAT, INT, POINTER, function, num_threads, takes

_rms_norm = function("ol_rms_norm", POINTER, INT, POINTER, POINTER, *[INT] * 3, FLOAT, INT)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """weight * x / sqrt(mean(x²) + eps): x [T, K], weight [K]; `out` may be x. Last dims contiguous."""
    if out is None:
        out = torch.empty_like(x)
    if out.shape != x.shape or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} or out {tuple(out.shape)} does not fit x {tuple(x.shape)}")
    if x.dim() != 2 or not takes(x, weight, out):
        return out.copy_(reference(x, weight, eps))
    _rms_norm(
        *(x.data_ptr(), x.stride(0), weight.data_ptr(), out.data_ptr(), out.stride(0)),
        *(x.shape[0], x.shape[1], eps, num_threads()),
    )
    return out


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The specification: statistics in float32, result in x's dtype."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)
