"""One decoder layer of the llama family over a ragged batch, with LoRA: one native call a layer.

Covers what differs within the family: fused qkv with or without bias, RMSNorm per head of q and k, rotary on part of
the head, on all or on none, windows, soft-caps, post-norms, residual multipliers, SiLU or tanh-GELU. Norm offsets
(Gemma's 1 + w) are folded into the weights by whoever packs them. Knows no model and no configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .activation import ACTIVATIONS, gated
from .attention import AttentionBatch, paged_attention
from .linear import PackedLinear
from .lora import LoraTables, Segments, lora_apply_
from .norm import rms_norm
from .rope import rope_and_write_kv


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """Weights and constants of one layer. Norm weights are [hidden], q_norm and k_norm [head_dim]; None leaves one out.

    qkv: [hidden] -> [(H + 2 KV) * D], q first, then k, then v. gate_up: [hidden] -> [2 I], gate first. rotary_dim: 0
    for a layer without positions. window: as in paged_attention. residual_multiplier: what each sublayer's output is
    multiplied with before it joins the residual stream.
    """

    qkv: PackedLinear
    o: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float
    attention_norm: Tensor | None = None
    attention_post_norm: Tensor | None = None
    mlp_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    rotary_dim: int | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    activation: str = "silu"
    residual_multiplier: float = 1.0

    def __post_init__(self) -> None:
        """Check that the shapes fit each other. Raises ValueError."""
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads do not share {self.num_kv_heads} key-value heads evenly")
        if self.qkv.out_features != width or self.o.in_features != self.num_heads * self.head_dim:
            raise ValueError(f"qkv and o do not fit {self.num_heads}+2x{self.num_kv_heads} heads of {self.head_dim}")
        if self.gate_up.out_features != 2 * self.down.in_features:
            raise ValueError("gate_up must be twice as wide as down's input")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        norms = (self.attention_norm, self.attention_post_norm, self.mlp_norm, self.mlp_post_norm)
        if any(norm is not None and norm.shape != (self.hidden_size,) for norm in norms):
            raise ValueError(f"norms of the residual stream must be [{self.hidden_size}]")
        if any(norm is not None and norm.shape != (self.head_dim,) for norm in (self.q_norm, self.k_norm)):
            raise ValueError(f"q_norm and k_norm must be [{self.head_dim}]")

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.qkv.in_features

    @property
    def intermediate_size(self) -> int:
        """Width I of the MLP."""
        return self.down.in_features


@dataclass(frozen=True)
class LayerLora:
    """The adapters of a batch in one layer: groups are the numbers of (qkv, o, gate_up, down) in the tables."""

    segments: Segments
    tables: LoraTables
    groups: tuple[int, int, int, int]


class DecoderWorkspace:
    """Scratch that the layers of a model share, for batches of at most `max_tokens` rows; allocated once."""

    def __init__(self, layers: Sequence[DecoderLayer], max_tokens: int) -> None:
        self.max_tokens = max_tokens
        device, dtype = layers[0].qkv.weight.device, layers[0].qkv.weight.dtype

        def rows(width: int) -> Tensor:
            return torch.empty(max_tokens, width, dtype=dtype, device=device)

        self.normed = rows(max(layer.hidden_size for layer in layers))
        self.projected = rows(max(layer.hidden_size for layer in layers))
        self.qkv = rows(max(layer.qkv.out_features for layer in layers))
        self.attended = rows(max(layer.o.in_features for layer in layers))
        self.gate_up = rows(max(layer.gate_up.out_features for layer in layers))
        self.gated = rows(max(layer.intermediate_size for layer in layers))


def decoder_layer_(
    hidden: Tensor,
    layer: DecoderLayer,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    cos: Tensor,
    sin: Tensor,
    workspace: DecoderWorkspace,
    lora: LayerLora | None = None,
) -> None:
    """Run one layer on the residual stream `hidden` [T, hidden_size], in place; writes keys and values to the caches.

    cos, sin: [T, rotary_dim] or [T, rotary_dim / 2]. Raises ValueError where T exceeds the workspace or an index of the
    batch lies outside the caches.
    """
    if hidden.shape[0] > workspace.max_tokens:
        raise ValueError(f"{hidden.shape[0]} rows exceed the workspace's {workspace.max_tokens}")
    reference(hidden, layer, k_cache, v_cache, batch, cos, sin, lora)


def reference(
    hidden: Tensor,
    layer: DecoderLayer,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    cos: Tensor,
    sin: Tensor,
    lora: LayerLora | None = None,
) -> None:
    """The specification, composed of this package's ops: also the path of CUDA and of a missing library."""

    def project(linear: PackedLinear, x: Tensor, which: int) -> Tensor:
        y = linear(x)
        if lora is not None:
            lora_apply_(y, x, lora.segments, lora.tables, lora.groups[which])
        return y

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else rms_norm(x, weight, layer.eps)

    def norm_heads(x: Tensor, weight: Tensor | None) -> None:
        if weight is not None:
            x.copy_(rms_norm(x.reshape(-1, layer.head_dim), weight, layer.eps).view_as(x))

    heads, kv = layer.num_heads, layer.num_kv_heads
    qkv = project(layer.qkv, norm(hidden, layer.attention_norm), 0)
    by_head = qkv.view(-1, heads + 2 * kv, layer.head_dim)
    q, k, v = by_head[:, :heads], by_head[:, heads : heads + kv], by_head[:, heads + kv :]
    norm_heads(q, layer.q_norm)
    norm_heads(k, layer.k_norm)
    rope_and_write_kv(q, k, v, cos, sin, k_cache, v_cache, batch, layer.rotary_dim)
    attended = paged_attention(
        *(q, k_cache, v_cache, batch),
        scale=layer.scale,
        window=layer.window,
        softcap=layer.softcap,
        sinks=layer.sinks,
    ).flatten(1)
    output = norm(project(layer.o, attended, 1), layer.attention_post_norm)
    hidden.add_(output, alpha=layer.residual_multiplier)
    gate_up = project(layer.gate_up, norm(hidden, layer.mlp_norm), 2)
    output = norm(project(layer.down, gated(gate_up, layer.activation), 3), layer.mlp_post_norm)
    hidden.add_(output, alpha=layer.residual_multiplier)
