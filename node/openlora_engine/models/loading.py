"""A Hugging Face folder → a model with paged attention whose linears take LoRA. Local files only, safetensors only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from openlora_kernels import DecoderWorkspace, PackedLinear

from ..adapters.targets import LoraTarget, LoraTargets
from ..config import AUTO, EngineConfig
from ..errors import Code, EngineError
from .architectures import Architecture, architecture_of, check_rope, unsupported
from .attention import register
from .context import ForwardContext, forward_context
from .decoder import FusedDecoder, FusedLayer, decoder_layer_of
from .linear import LoraLinear, features, weight_and_bias
from .quantization import check_prequantized, quantize, stored_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class KVGeometry:
    """Shape of one layer's keys (and values) for one token."""

    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A base model ready to run. `forward` is its only use; everything else is what others size themselves by."""

    name: str
    causal_lm: nn.Module
    architecture: Architecture
    targets: LoraTargets
    kv_layers: tuple[KVGeometry, ...]
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    weights_nbytes: int
    num_fused_layers: int

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, logits_indices: Tensor, context: ForwardContext) -> Tensor:
        """Token ids [T] of one flattened batch → fp32 logits [R, V] of the rows that `logits_indices` [R] name."""
        with forward_context(context):
            output = self.causal_lm(
                input_ids=token_ids.unsqueeze(0),
                position_ids=context.batch.positions.unsqueeze(0),
                use_cache=False,
                logits_to_keep=logits_indices,
            )
        logits: Tensor = output.logits[0]
        return logits.float()


def load_model(config: EngineConfig, folder: Path) -> LoadedModel:
    """Load, check and rebuild the model in `folder`. Raises EngineError MODEL_UNSUPPORTED or CONFIG_INVALID."""
    if not (folder / "config.json").is_file():
        raise EngineError(Code.CONFIG_INVALID, "--model must be a folder with config.json and safetensors weights")
    try:
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise unsupported("config.json is not one that the installed transformers reads without remote code") from error
    architecture = architecture_of(hf_config)
    max_model_len = _max_model_len(config, hf_config)
    check_rope(hf_config, max_model_len)
    device, dtype = choose_device(config)
    check_prequantized(hf_config, quantization=config.quantization, device=device)
    try:
        causal_lm = AutoModelForCausalLM.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            attn_implementation=register(),
            local_files_only=True,
            use_safetensors=True,
        )
    except OSError as error:
        raise EngineError(Code.CONFIG_INVALID, "--model has no complete set of safetensors weights") from error
    except (ImportError, RuntimeError, ValueError) as error:
        raise unsupported("transformers does not load these weights here: its reason is in the log") from error
    causal_lm.to(device).requires_grad_(requires_grad=False)  # type: ignore[arg-type] # eval mode is the loader's
    return rebuild(
        causal_lm,
        architecture,
        name=config.served_model_name or folder.resolve().name,
        max_model_len=max_model_len,
        quantization=config.quantization,
        eos_token_ids=_eos_token_ids(folder, hf_config),
        max_num_tokens=config.max_num_batched_tokens,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's fast tokenizer. Raises EngineError MODEL_UNSUPPORTED where it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise unsupported("the folder has no tokenizer that transformers reads without remote code") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise unsupported("only fast tokenizers (tokenizer.json) are served: convert the folder's tokenizer")
    return tokenizer


def choose_device(config: EngineConfig) -> tuple[torch.device, torch.dtype]:
    """Device and dtype that the flags ask for. Raises EngineError CONFIG_INVALID where there is no such device."""
    kind = config.device
    if kind == AUTO:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise EngineError(Code.CONFIG_INVALID, "--device cuda: no CUDA device is visible; use cpu or install a driver")
    name = config.dtype
    if name == AUTO:
        # bf16 GEMM without AMX is several times slower than fp32 from 32 rows on (docs/benchmarks.md).
        name = "float32" if kind == "cpu" else "bfloat16"
    if kind == "cpu" and name != "float32":
        raise EngineError(Code.CONFIG_INVALID, f"--dtype {name} is for CUDA: the CPU kernels compute in float32")
    return torch.device(kind), DTYPES[name]


def rebuild(
    causal_lm: Any,
    architecture: Architecture,
    *,
    name: str = "model",
    max_model_len: int | None = None,
    quantization: str = "none",
    eos_token_ids: frozenset[int] = frozenset(),
    max_num_tokens: int = 512,
    fuse: bool = True,
) -> LoadedModel:
    """Replace a transformers model's layers and linears in place by ours. `fuse` False keeps its own layers."""
    config = causal_lm.config
    parameter = next(causal_lm.parameters())
    device, dtype = parameter.device, parameter.dtype
    if quantization != "none":
        quantize(causal_lm, architecture, quantization)
    plain = quantization == "none" and not getattr(causal_lm, "is_quantized", False)
    targets: list[LoraTarget] = []
    num_groups = 0
    layers = causal_lm.get_submodule(architecture.layers)
    fused: list[FusedLayer] = []
    for index, layer in enumerate(layers):
        prefix = f"{architecture.layers}.{index}"
        projections = architecture.projections
        whole = decoder_layer_of(layer, architecture, config) if fuse and architecture.fusable and plain else None
        if whole is None:
            projections = tuple((path,) for group in projections for path in group)
        targets.extend(_targets(layer, prefix, projections, num_groups))
        if whole is not None:
            fused.append(FusedLayer.at(whole, index, num_groups))
            layers[index] = nn.Identity()  # the original goes at once: two copies of all layers may not fit
        else:
            for group, (path,) in enumerate(projections, start=num_groups):
                _replace(layer, path, group, packed=plain)
        num_groups += len(projections)
    num_layers = len(layers)
    if fused:
        _put_fused(layers, fused, architecture, max_num_tokens)
    _pack_head(causal_lm, packed=plain)
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LoadedModel(
        name=name,
        causal_lm=causal_lm,
        architecture=architecture,
        targets=LoraTargets(tuple(targets)),
        kv_layers=tuple(KVGeometry(num_kv_heads, head_dim) for _ in range(num_layers)),
        device=device,
        dtype=dtype,
        vocab_size=config.vocab_size,
        max_model_len=max_model_len or config.max_position_embeddings,
        eos_token_ids=eos_token_ids,
        weights_nbytes=_nbytes(causal_lm),
        num_fused_layers=len(fused),
    )


def _put_fused(layers: Any, fused: list[FusedLayer], architecture: Architecture, max_num_tokens: int) -> None:
    """One module for all layers spares transformers' walk over them; position embeddings by layer forbid it."""
    workspace = DecoderWorkspace([layer.weights for layer in fused], max_num_tokens)
    if len(fused) == len(layers) and not architecture.rope_by_layer:
        del layers[1:]
        layers[0] = FusedDecoder(fused, workspace)
        return
    for layer in fused:
        layers[layer.layer_idx] = FusedDecoder([layer], workspace)


def _targets(
    layer: nn.Module, prefix: str, projections: tuple[tuple[str, ...], ...], first_group: int
) -> Iterator[LoraTarget]:
    """The linears of a layer as adapters see them."""
    for group, paths in enumerate(projections, start=first_group):
        for index, path in enumerate(paths):
            k, n = features(layer.get_submodule(path))
            yield LoraTarget(f"{prefix}.{path}", group, index, k, n)


def _replace(layer: nn.Module, path: str, group: int | None, *, packed: bool) -> None:
    """Put a LoraLinear where the linear at `path` was."""
    parent, _, name = path.rpartition(".")
    linear = layer.get_submodule(path)
    base = PackedLinear.pack(*weight_and_bias(linear)) if packed else linear
    setattr(layer.get_submodule(parent), name, LoraLinear(base, group))


def _pack_head(causal_lm: Any, *, packed: bool) -> None:
    """The LM head is a packed linear of its own; a tied embedding keeps the plain weight for its look-ups."""
    head = causal_lm.get_output_embeddings()
    if packed and isinstance(head, nn.Linear):
        name = next(name for name, module in causal_lm.named_modules() if module is head)
        _replace(causal_lm, name, None, packed=True)


def _nbytes(causal_lm: nn.Module) -> int:
    """Bytes of all weights, tied ones once."""
    named = (*causal_lm.parameters(), *causal_lm.buffers())
    held = {part.data_ptr(): part.nbytes for tensor in named for part in stored_tensors(tensor)}
    packed = (module.nbytes for module in causal_lm.modules() if isinstance(module, LoraLinear | FusedDecoder))
    return sum(held.values()) + sum(packed)


def _max_model_len(config: EngineConfig, hf_config: Any) -> int:
    limit: int = hf_config.max_position_embeddings
    if config.max_model_len > limit:
        raise EngineError(
            Code.CONFIG_INVALID, f"--max-model-len {config.max_model_len} exceeds the model's own limit of {limit}"
        )
    return config.max_model_len or limit


def _eos_token_ids(folder: Path, hf_config: Any) -> frozenset[int]:
    """Tokens that end a text: the generation config's, else the model config's."""
    eos: int | list[int] | None = None
    if (folder / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(folder).eos_token_id
    if eos is None:
        eos = hf_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())
