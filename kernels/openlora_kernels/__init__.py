"""The engine's kernels: one op a file, each beside its plain-torch reference. Imports no other package of ours."""

from __future__ import annotations

# ruff: noqa: E402 - the first lines must run before torch is imported
from .openmp import limit_spinning

SPINNING_IS_LIMITED = limit_spinning()
"""False where torch was imported before this package: steps then suffer when other processes want the cores too."""

from .activation import gelu_tanh_mul, silu_mul
from .attention import AttentionBatch, paged_attention, write_kv
from .decoder import DecoderLayer, DecoderWorkspace, LayerLora, decoder_layer_
from .linear import PackedLinear
from .lora import BlobLayout, GroupWeights, LoraGroup, LoraTables, Segments, group_weights, lora_apply_
from .native import huge_empty, native_status, torch_paths
from .norm import rms_norm
from .rope import rope_, rope_and_write_kv

__all__ = [
    "SPINNING_IS_LIMITED",
    "AttentionBatch",
    "BlobLayout",
    "DecoderLayer",
    "DecoderWorkspace",
    "GroupWeights",
    "LayerLora",
    "LoraGroup",
    "LoraTables",
    "PackedLinear",
    "Segments",
    "decoder_layer_",
    "gelu_tanh_mul",
    "group_weights",
    "huge_empty",
    "lora_apply_",
    "native_status",
    "paged_attention",
    "rms_norm",
    "rope_",
    "rope_and_write_kv",
    "silu_mul",
    "torch_paths",
    "write_kv",
]
