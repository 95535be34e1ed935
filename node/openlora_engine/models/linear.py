"""A linear layer of the base with LoRA on top: replaces a model's own, packed where the native kernels can."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from openlora_kernels import PackedLinear, lora_apply_

from .context import current


class LoraLinear(nn.Module):
    """y = x W^T + b, then y += LoRA of the batch's segments. x [1, T, K] or [T, K] → [..., N].

    `group` is the LoRA group of this linear, None where adapters cannot reach it (the LM head).
    """

    def __init__(self, base: PackedLinear | nn.Module, group: int | None) -> None:
        super().__init__()
        self.base = base
        self.group = group

    @property
    def nbytes(self) -> int:
        """Bytes packed here; a plain base counts as its own parameters."""
        return self.base.nbytes if isinstance(self.base, PackedLinear) else 0

    def forward(self, x: Tensor) -> Tensor:
        """Base and LoRA."""
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = self.base(flat)
        if self.group is not None:
            context = current()
            if context.segments is not None and context.tables is not None:
                lora_apply_(y, flat, context.segments, context.tables, self.group)
        return y.view(*x.shape[:-1], y.shape[-1])


def weight_and_bias(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A linear's weight [N, K] and bias [N], whatever its class keeps (GPT-2's Conv1D keeps [K, N])."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    bias: Tensor | None = getattr(linear, "bias", None)
    return (weight.t() if isinstance(linear, Conv1D) else weight), bias


def features(linear: nn.Module) -> tuple[int, int]:
    """(K, N) of a linear or Conv1D; of one whose weight is packed by its quantiser, what it says of itself."""
    if isinstance(linear, Conv1D):
        rows, columns = linear.weight.shape
        return rows, columns
    return linear.in_features, linear.out_features  # type: ignore[return-value]
