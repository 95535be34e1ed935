"""Decoder layers of the llama family, one kernel call each: they take over a transformers model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openlora_kernels import DecoderLayer, DecoderWorkspace, LayerLora, PackedLinear, decoder_layer_

from .architectures import Architecture
from .context import current
from .linear import weight_and_bias

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_POST_NORMED = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class FusedLayer:
    """One layer, its place in the KV cache, and the LoRA groups of its four projections."""

    weights: DecoderLayer
    layer_idx: int
    groups: tuple[int, int, int, int]

    @classmethod
    def at(cls, weights: DecoderLayer, layer_idx: int, first_group: int) -> FusedLayer:
        """A layer whose groups follow each other."""
        return cls(weights, layer_idx, (first_group, first_group + 1, first_group + 2, first_group + 3))


class FusedDecoder(nn.Module):
    """Stands where transformers decoder layers stood that share their position embeddings: usually all of a model."""

    def __init__(self, layers: Sequence[FusedLayer], workspace: DecoderWorkspace) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.workspace = workspace

    @property
    def nbytes(self) -> int:
        """Bytes of the packed projections."""
        weights = (layer.weights for layer in self.layers)
        return sum(part.nbytes for layer in weights for part in (layer.qkv, layer.o, layer.gate_up, layer.down))

    def forward(self, hidden_states: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """Hidden states [1, T, hidden], changed in place and returned."""
        context, workspace = current(), self.workspace
        hidden, cos, sin = hidden_states[0], position_embeddings[0][0], position_embeddings[1][0]
        lora = None
        caches = [context.kv_caches[layer.layer_idx] for layer in self.layers]
        for layer, (k_cache, v_cache), ahead in zip(self.layers, caches, (*caches[1:], None), strict=True):
            if context.segments is not None and context.tables is not None:
                lora = LayerLora(context.segments, context.tables, layer.groups)
            decoder_layer_(
                *(hidden, layer.weights, k_cache, v_cache, context.batch, cos, sin, workspace, lora), next_caches=ahead
            )
        return hidden_states


def decoder_layer_of(layer: nn.Module, architecture: Architecture, config: Any) -> DecoderLayer | None:
    """What the kernel needs of a transformers layer, its linears packed; None where the layer does something else."""
    attention: Any = layer.self_attn
    activation = ACTIVATIONS.get(getattr(config, "hidden_activation", None) or config.hidden_act)
    if activation is None:
        return None
    head_dim: int = attention.head_dim
    post_normed = all(hasattr(layer, name) for name in _POST_NORMED)
    attention_post = layer.post_attention_layernorm if post_normed else None
    mlp_norm: Any = layer.pre_feedforward_layernorm if post_normed else layer.post_attention_layernorm
    mlp_post = layer.post_feedforward_layernorm if post_normed else None
    first_norm: Any = layer.input_layernorm
    qkv, o, gate_up, down = (_packed(layer, paths) for paths in architecture.projections)

    def weight(norm: Any) -> Tensor | None:
        return None if norm is None else (norm.weight + architecture.norm_offset).contiguous()

    return DecoderLayer(
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        eps=getattr(first_norm, "variance_epsilon", None) or first_norm.eps,
        scale=attention.scaling,
        attention_norm=weight(first_norm),
        attention_post_norm=weight(attention_post),
        mlp_norm=weight(mlp_norm),
        mlp_post_norm=weight(mlp_post),
        q_norm=weight(getattr(attention, "q_norm", None)),
        k_norm=weight(getattr(attention, "k_norm", None)),
        rotary_dim=_rotary_dim(attention, config, head_dim),
        # Mistral and Phi-3 window every layer by their configuration; the others say it of each layer.
        window=getattr(attention, "sliding_window", getattr(config, "sliding_window", None)),
        softcap=getattr(attention, "attn_logit_softcapping", None),
        activation=activation,
        residual_multiplier=getattr(layer, "residual_multiplier", 1.0),
    )


def _packed(layer: nn.Module, paths: Sequence[str]) -> PackedLinear:
    """The linears at `paths` as one, their outputs side by side; a bias that only some have is zero for the others."""
    parts = [weight_and_bias(layer.get_submodule(path)) for path in paths]
    weight = torch.cat([weight for weight, _ in parts])
    if all(bias is None for _, bias in parts):
        return PackedLinear.pack(weight)
    return PackedLinear.pack(
        weight, torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts])
    )


def _rotary_dim(attention: Any, config: Any, head_dim: int) -> int:
    if not getattr(attention, "use_rope", True):
        return 0
    rope = getattr(config, "rope_parameters", None) or {}
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))
