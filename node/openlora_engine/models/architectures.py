"""The architectures that are served, each gated by an equality test: where their layers and linears lie.

An architecture that is not here is refused at load: paged attention silently drops what a model hides in its mask
(ALiBi) or in an attention dispatch of its own. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Code, EngineError

LLAMA_PROJECTIONS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
PHI3_PROJECTIONS = (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",))
GPT_NEOX_PROJECTIONS = (
    ("attention.query_key_value",),
    ("attention.dense",),
    ("mlp.dense_h_to_4h",),
    ("mlp.dense_4h_to_h",),
)
GPT2_PROJECTIONS = (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))


@dataclass(frozen=True)
class Architecture:
    """One family: the transformers class, where its layers lie, and the linears of a layer that take LoRA.

    `projections` are groups of module paths within a layer whose inputs are the same; a fused path computes a group at
    once. `fusable` says that a layer is RMSNorm, rotate-half attention and a gated MLP, so that one kernel computes it;
    `norm_offset` is what such a norm adds to its weight, `rope_by_layer` says that position embeddings differ by layer.
    """

    model_type: str
    causal_lm: str
    layers: str = "model.layers"
    projections: tuple[tuple[str, ...], ...] = LLAMA_PROJECTIONS
    fusable: bool = True
    norm_offset: float = 0.0
    rope_by_layer: bool = False


ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM"),
    Architecture("mistral", "MistralForCausalLM"),
    Architecture("qwen2", "Qwen2ForCausalLM"),
    Architecture("qwen3", "Qwen3ForCausalLM"),
    # Its experts are three-dimensional parameters without a linear to wrap: adapters reach attention only.
    Architecture("qwen3_moe", "Qwen3MoeForCausalLM", projections=LLAMA_PROJECTIONS[:2], fusable=False),
    Architecture("gemma2", "Gemma2ForCausalLM", norm_offset=1.0),
    Architecture("gemma3_text", "Gemma3ForCausalLM", norm_offset=1.0, rope_by_layer=True),
    Architecture("phi3", "Phi3ForCausalLM", projections=PHI3_PROJECTIONS),
    # Its LayerNorm has no weights and its projections may be clipped.
    Architecture("olmo", "OlmoForCausalLM", fusable=False),
    Architecture("granite", "GraniteForCausalLM"),
    Architecture("smollm3", "SmolLM3ForCausalLM"),
    Architecture("gpt2", "GPT2LMHeadModel", "transformer.h", GPT2_PROJECTIONS, fusable=False),
    Architecture("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.layers", GPT_NEOX_PROJECTIONS, fusable=False),
)
_BY_MODEL_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}

POSITION_FREE_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""RoPE variants whose frequencies do not depend on how long the batch's longest sequence is."""


def architecture_of(config: Any) -> Architecture:
    """The row for a transformers config. Raises EngineError MODEL_UNSUPPORTED with the reason."""
    model_type = getattr(config, "model_type", "")
    found = _BY_MODEL_TYPE.get(model_type)
    if found is None:
        served = ", ".join(sorted(_BY_MODEL_TYPE))
        raise unsupported(f"architecture {model_type!r} has no equality test here; served are {served}")
    declared = getattr(config, "architectures", None) or [found.causal_lm]
    if found.causal_lm not in declared:
        raise unsupported(f"{declared[0]} is not a causal language model of {model_type}; {found.causal_lm} is")
    for setting, reason in (
        ("reorder_and_upcast_attn", "computes attention outside the attention interface"),
        ("add_cross_attention", "attends to another model"),
        ("use_bidirectional_attention", "is not causal"),
    ):
        if getattr(config, setting, False):
            raise unsupported(f"{model_type} with {setting} {reason}")
    return found


def check_rope(config: Any, max_model_len: int) -> None:
    """Refuse RoPE variants that change with the batch's longest sequence. Raises EngineError MODEL_UNSUPPORTED.

    They would make a request's output depend on its neighbours. Below the original length they are constant.
    """
    declared: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    parameters = list(declared.values()) if all(isinstance(value, dict) for value in declared.values()) else [declared]
    for rope in parameters:
        kind = rope.get("rope_type", "default")
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if kind not in POSITION_FREE_ROPE and max_model_len > original:
            raise unsupported(
                f"RoPE type {kind!r} changes with the longest sequence of a batch beyond {original} tokens: "
                f"set --max-model-len {original} or less"
            )


def unsupported(reason: str) -> EngineError:
    """The error of a model that is not served."""
    return EngineError(Code.MODEL_UNSUPPORTED, reason)
