"""Tiny random models of every served architecture, and a driver that runs ragged batches of them through the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from openlora_engine.models.architectures import ARCHITECTURES, Architecture
from openlora_engine.models.attention import register
from openlora_engine.models.loading import LoadedModel, rebuild
from openlora_engine.runner import ModelRunner
from openlora_kernels import LoraTables

VOCAB = 331
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 24}
WINDOW = {"sliding_window": 16}
GPT = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama-bias": ("LlamaConfig", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "LlamaConfig",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("MistralConfig", LLAMA | WINDOW),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | HEADS),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        LLAMA | HEADS | {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma2": ("Gemma2Config", LLAMA | HEADS | WINDOW | {"query_pre_attn_scalar": 24}),
    "gemma3_text": ("Gemma3TextConfig", LLAMA | HEADS | WINDOW | {"query_pre_attn_scalar": 24}),
    "phi3": ("Phi3Config", LLAMA),
    "phi3-window": ("Phi3Config", LLAMA | WINDOW),
    "olmo": ("OlmoConfig", LLAMA | {"clip_qkv": 0.5}),
    "granite": (
        "GraniteConfig",
        LLAMA | {"residual_multiplier": 0.5, "attention_multiplier": 0.1, "embedding_multiplier": 3.0},
    ),
    "smollm3": ("SmolLM3Config", LLAMA | {"num_hidden_layers": 4}),
    "gpt2": ("GPT2Config", GPT | {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 256}),
    "gpt_neox": (
        "GPTNeoXConfig",
        GPT
        | {
            "hidden_size": 96,
            "intermediate_size": 136,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "max_position_embeddings": 256,
        },
    ),
}
"""Sizes that are no multiples of a register tile, so that every kernel's tail is walked."""


def architecture(name: str) -> Architecture:
    """The row that serves the configuration `name`."""
    family = "llama" if name.startswith("llama") else name.partition("-")[0]
    return next(row for row in ARCHITECTURES if row.model_type == family)


def tiny_causal_lm(name: str, *, attention: str = "eager", seed: int = 0) -> Any:
    """A random fp32 model of the configuration `name`; the same seed gives the same weights."""
    kind, values = CONFIGS[name]
    config = getattr(transformers, kind)(**values)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start as ones and zeros: errors in them would not show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(requires_grad=False)


def tiny_model(name: str, *, seed: int = 0, fuse: bool = True) -> LoadedModel:
    """The same model, rebuilt for the engine."""
    causal_lm = tiny_causal_lm(name, attention=register(), seed=seed)
    return rebuild(causal_lm, architecture(name), name=name, max_num_tokens=256, fuse=fuse)


@dataclass
class Row:
    """One sequence as the runner sees it."""

    token_ids: list[int]
    block_table: list[int]
    slot: int | None = None
    num_computed_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """A part of a sequence in one step."""

    seq: Row
    num_tokens: int
    samples: bool = True


@dataclass
class Driver:
    """Runs hand-made schedules; blocks are given out in a scrambled order."""

    model: LoadedModel
    tables: LoraTables | None = None
    block_size: int = 16
    num_blocks: int = 64
    runner: ModelRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = ModelRunner(self.model, self.num_blocks, self.block_size, self.tables)
        self._free = [(number * 37) % self.num_blocks for number in range(self.num_blocks)]

    def row(self, ids: Sequence[int], slot: int | None = None) -> Row:
        count = -(-len(ids) // self.block_size)
        return Row(list(ids), [self._free.pop() for _ in range(count)], slot)

    def step(self, *parts: tuple[Row, int]) -> Tensor:
        """Compute the next n tokens of each row; logits [rows, V] of each part's last token, in order."""
        chunks = [Chunk(row, count) for row, count in parts]
        logits = self.runner.forward(chunks)  # type: ignore[arg-type]
        for chunk in chunks:
            chunk.seq.num_computed_tokens += chunk.num_tokens
        return logits
