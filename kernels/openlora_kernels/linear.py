"""A linear layer for small batches: weights packed once into panels that one register tile reads front to back.

MKL reaches 20-90 GF/s of 138 for 1 to 64 rows on the machine this was written on; the packed kernel (csrc/gemm.cpp)
reaches 100-130. Knows no model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from .native import INT, POINTER, function, huge_empty, native, num_threads, takes

PANEL = 24
"""Columns of a panel: csrc/gemm.h NR."""

_gemm = function("ol_gemm", *[POINTER] * 2, *[POINTER, INT] * 2, *[INT] * 5)
_pack = function("ol_gemm_pack", POINTER, INT, POINTER, *[INT] * 3)


class PackedLinear:
    """y = x W^T + bias with W [N, K] packed for the native kernel, or a plain tensor where that is absent.

    A row's result is bit-equal whatever the number of rows (native path).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, in_features: int, out_features: int, *, packed: bool):
        self.weight = weight
        self.bias = bias
        self.in_features = in_features
        self.out_features = out_features
        self.packed = packed

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """From weight [N, K] and bias [N]. float32 on CPU is packed (a copy: drop the original); all else is kept."""
        out_features, in_features = weight.shape
        if bias is not None and bias.shape != (out_features,):
            raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
        weight = weight.detach()
        bias = bias.detach().contiguous() if bias is not None else None
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not native():
            return cls(weight, bias, in_features, out_features, packed=False)
        weight = weight.contiguous()
        panels = -(-out_features // PANEL)
        packed = huge_empty(panels * in_features * PANEL * 4).view(torch.float32).view(panels, in_features, PANEL)
        _pack(weight.data_ptr(), in_features, packed.data_ptr(), in_features, out_features, num_threads())
        return cls(packed, bias, in_features, out_features, packed=True)

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    def unpacked(self) -> Tensor:
        """The weight [N, K] again."""
        if not self.packed:
            return self.weight
        rows = self.weight.permute(0, 2, 1).reshape(-1, self.in_features)
        return rows[: self.out_features].contiguous()

    def __call__(self, x: Tensor, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
        """x [T, K] -> [T, N], into `out` where given, added to it with `accumulate`. Last dims contiguous."""
        if accumulate and out is None:
            raise ValueError("accumulate needs the tensor to add to: pass out")
        if not (self.packed and native()):
            return self._torch(x, out, accumulate)
        if x.dim() != 2 or x.shape[1] != self.in_features or not takes(x):
            raise ValueError(f"x must be float32 [T, {self.in_features}], it is {x.dtype} {tuple(x.shape)}")
        rows = x.shape[0]
        if out is None:
            out = torch.empty(rows, self.out_features)
        elif out.shape != (rows, self.out_features) or not takes(out):
            raise ValueError(f"out must be float32 [{rows}, {self.out_features}] with contiguous rows")
        bias = self.bias.data_ptr() if self.bias is not None else None
        _gemm(
            *(self.weight.data_ptr(), bias, x.data_ptr(), x.stride(0), out.data_ptr(), out.stride(0)),
            *(rows, self.in_features, self.out_features, accumulate, num_threads()),
        )
        return out

    def _torch(self, x: Tensor, out: Tensor | None, accumulate: bool) -> Tensor:
        result = F.linear(x, self.unpacked(), self.bias)
        if out is None:
            return result
        return out.add_(result) if accumulate else out.copy_(result)
