"""Gated activations of an MLP whose gate and up projections are computed as one: act(gate) * up. Knows no model."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from .native import INT, POINTER, function, num_threads, takes

ACTIVATIONS = ("silu", "gelu_tanh")
"""SiLU, and GELU in its tanh form (arXiv 1606.08415); the index is csrc/ops.h's code."""

_gated = function("ol_gated", *[POINTER, INT] * 2, *[INT] * 4)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up: gate_up [T, 2I], gate first -> [T, I]."""
    return gated(gate_up, "silu", out)


def gelu_tanh_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """gelu_tanh(gate) * up: gate_up [T, 2I], gate first -> [T, I]."""
    return gated(gate_up, "gelu_tanh", out)


def gated(gate_up: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """activation(gate) * up, `activation` of ACTIVATIONS. Last dims contiguous."""
    width = gate_up.shape[1] // 2
    if out is None:
        out = gate_up.new_empty(gate_up.shape[0], width)
    if out.shape != (gate_up.shape[0], width) or activation not in ACTIVATIONS:
        raise ValueError(
            f"out {tuple(out.shape)} must be [{gate_up.shape[0]}, {width}], {activation!r} of {ACTIVATIONS}"
        )
    if not takes(gate_up, out):
        return out.copy_(reference(gate_up, activation))
    _gated(
        *(gate_up.data_ptr(), gate_up.stride(0), out.data_ptr(), out.stride(0)),
        *(gate_up.shape[0], width, ACTIVATIONS.index(activation), num_threads()),
    )
    return out


def reference(gate_up: Tensor, activation: str) -> Tensor:
    """The specification."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
