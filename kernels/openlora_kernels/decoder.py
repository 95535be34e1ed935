"""One decoder layer of the llama family over a ragged batch, with LoRA: one native call a layer.

Covers what differs within the family: fused qkv with or without bias, RMSNorm per head of q and k, rotary on part of
the head, on all or on none, windows, soft-caps, post-norms, residual multipliers, SiLU or tanh-GELU. Norm offsets
(Gemma's 1 + w) are folded into the weights by whoever packs them. Knows no model and no configuration.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .activation import ACTIVATIONS, gated
from .attention import AttentionBatch, paged_attention
from .linear import PackedLinear
from .lora import LoraTables, Segments, lora_apply_
from .native import FLOAT, INT, POINTER, function, num_threads, takes
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
        if self.rotary_width % 2 or not 0 <= self.rotary_width <= self.head_dim:
            raise ValueError(f"rotary_dim must be even and at most {self.head_dim}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        norms = (self.attention_norm, self.attention_post_norm, self.mlp_norm, self.mlp_post_norm)
        if any(norm is not None and norm.shape != (self.hidden_size,) for norm in norms):
            raise ValueError(f"norms of the residual stream must be [{self.hidden_size}]")
        if any(norm is not None and norm.shape != (self.head_dim,) for norm in (self.q_norm, self.k_norm)):
            raise ValueError(f"q_norm and k_norm must be [{self.head_dim}]")

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """Norms and sinks, in the order of the native layer."""
        norms = (self.attention_norm, self.attention_post_norm, self.mlp_norm, self.mlp_post_norm)
        return (*norms, self.q_norm, self.k_norm, self.sinks)

    @property
    def rotary_width(self) -> int:
        """Rotary dims of a head."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @cached_property
    def native(self) -> int | None:
        """Address of the C description; None where a weight is not packed for the native path."""
        packed = all(linear.packed for linear in (self.qkv, self.o, self.gate_up, self.down))
        plain = all(v is None or (v.dtype == torch.float32 and v.is_contiguous()) for v in self.vectors)
        if not (packed and plain and self.head_dim % 8 == 0):
            return None
        self.__dict__["_description"] = _NativeLayer.of(self)
        return ctypes.addressof(self.__dict__["_description"])

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
        widths = (
            max(layer.hidden_size for layer in layers),
            max(layer.hidden_size for layer in layers),
            max(layer.qkv.out_features for layer in layers),
            max(layer.o.in_features for layer in layers),
            max(layer.gate_up.out_features for layer in layers),
            max(layer.intermediate_size for layer in layers),
        )
        self._buffers = [torch.empty(max_tokens * width) for width in widths]
        self._native = _NativeWorkspace(*(buffer.data_ptr() for buffer in self._buffers), max_tokens)
        self.address = ctypes.addressof(self._native)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in self._buffers)


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
    next_caches: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Run one layer on the residual stream `hidden` [T, hidden_size], in place; writes keys and values to the caches.

    cos, sin: [T, rotary_dim] or [T, rotary_dim / 2]. next_caches: the next layer's, of the same shape, fetched into the
    processor's caches while this layer computes (a hint). A row's result is bit-equal whatever else is in the batch
    (native path). Raises ValueError where T exceeds the workspace or an index of the batch lies outside the caches.
    """
    tokens = hidden.shape[0]
    if tokens > workspace.max_tokens:
        raise ValueError(f"{tokens} rows exceed the workspace's {workspace.max_tokens}")
    if tokens != batch.slot_mapping.shape[0] or hidden.shape[1] != layer.hidden_size:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit the batch or the layer's {layer.hidden_size}")
    if k_cache.shape[2:] != (layer.num_kv_heads, layer.head_dim) or k_cache.shape != v_cache.shape:
        raise ValueError(f"caches {tuple(k_cache.shape)} do not fit {layer.num_kv_heads} heads of {layer.head_dim}")
    if layer.rotary_width and cos.shape[1] not in (layer.rotary_width, layer.rotary_width // 2):
        raise ValueError(f"cos {tuple(cos.shape)} does not fit {layer.rotary_width} rotary dims")
    if not (layer.native and _fits(hidden, k_cache, cos, sin)):
        reference(hidden, layer, k_cache, v_cache, batch, cos, sin, lora)
        return
    _decoder_layer(
        *(layer.native, workspace.address, hidden.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()),
        *((None, None) if next_caches is None else (next_caches[0].data_ptr(), next_caches[1].data_ptr())),
        *(k_cache.shape[0], k_cache.shape[1]),
        *batch.addresses,
        *(cos.data_ptr(), sin.data_ptr(), cos.stride(0)),
        *_lora_arguments(lora),
        num_threads(),
    )


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


class _NativeLinear(ctypes.Structure):
    _fields_ = (("packed", POINTER), ("bias", POINTER), ("in_features", INT), ("out_features", INT))

    @classmethod
    def of(cls, linear: PackedLinear) -> _NativeLinear:
        return cls(linear.weight.data_ptr(), _address(linear.bias), linear.in_features, linear.out_features)


class _NativeLayer(ctypes.Structure):
    """csrc/decoder.cpp: Layer."""

    _fields_ = (
        *((name, _NativeLinear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, POINTER) for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")),
        *((name, POINTER) for name in ("q_norm", "k_norm", "sinks")),
        *((name, INT) for name in ("heads", "kv_heads", "head_dim", "rotary_dim", "window", "activation")),
        *((name, FLOAT) for name in ("eps", "scale", "softcap", "residual_multiplier")),
    )

    @classmethod
    def of(cls, layer: DecoderLayer) -> _NativeLayer:
        return cls(
            *(_NativeLinear.of(linear) for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)),
            *map(_address, layer.vectors),
            *(layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.rotary_width),
            *(layer.window or 0, ACTIVATIONS.index(layer.activation)),
            *(layer.eps, layer.scale, layer.softcap or 0.0, layer.residual_multiplier),
        )


class _NativeWorkspace(ctypes.Structure):
    """csrc/decoder.cpp: Workspace."""

    _fields_ = (
        *((name, POINTER) for name in ("normed", "projected", "qkv", "attended", "gate_up", "gated")),
        ("max_tokens", INT),
    )


_decoder_layer = function(
    "ol_decoder_layer",
    *(*[POINTER] * 7, *[INT] * 2, *[POINTER] * 4, *[INT] * 3, *[POINTER] * 2, INT),
    *(*[POINTER] * 3, INT, *[POINTER] * 4, INT),
)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _lora_arguments(lora: LayerLora | None) -> tuple[int | None, ...]:
    if lora is None or lora.segments.slots.shape[0] == 0:
        return (None, None, None, 0, None, None, None, None)
    segments, tables = lora.segments, lora.tables
    return (
        *(segments.rows.data_ptr(), segments.offsets.data_ptr(), segments.slots.data_ptr(), segments.slots.shape[0]),
        *(tables.native_group(group) for group in lora.groups),
    )


def _fits(hidden: Tensor, k_cache: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return takes(hidden, k_cache, cos, sin) and hidden.is_contiguous() and cos.stride() == sin.stride()
