"""PEFT folders and tiny random models: what adapter tests of the engine are made of.

`peft_adapter` saves through PEFT itself, `plain_adapter` writes the same files without it (fast: for thousands), and
`write_folder` writes whatever it is given (for bad input). Weights of every adapter are random, B included, so that no
adapter is a no-op.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from openlora_engine.adapters.blob import Blob, Storage
from openlora_engine.adapters.targets import LoraTarget, LoraTargets
from openlora_kernels.lora import LoraTables, Segments, reference

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = (ATTENTION[:3], ATTENTION[3:], MLP[:2], MLP[2:])


def tiny_config(**changes: Any) -> LlamaConfig:
    """A Llama of two layers whose feature counts are all different and none a power of two."""
    defaults = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**{**defaults, **changes})


def tiny_model(config: PretrainedConfig | None = None, seed: int = 0) -> PreTrainedModel:
    """A random fp32 causal LM, on the CPU, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or tiny_config(), dtype=torch.float32)
    return model.eval().requires_grad_(requires_grad=False)


def targets_of(model: nn.Module, *, fused: bool = True) -> LoraTargets:
    """The targets of a llama-like model; `fused` puts q/k/v and gate/up into one group each."""
    items, group = [], 0
    layers = model.model.layers
    for layer in range(len(layers)):
        for names in FUSED if fused else tuple((name,) for row in FUSED for name in row):
            for index, name in enumerate(names):
                part = "self_attn" if name in ATTENTION else "mlp"
                linear = layers[layer].get_submodule(f"{part}.{name}")
                path = f"model.layers.{layer}.{part}.{name}"
                items.append(LoraTarget(path, group, index, linear.in_features, linear.out_features))
            group += 1
    return LoraTargets(tuple(items))


def llama_targets(
    num_layers: int = 2, hidden: int = 48, kv: int = 24, intermediate: int = 72, *, fused: bool = True
) -> LoraTargets:
    """The same targets without a model: q and o are [hidden, hidden], k and v [kv, hidden]."""
    shapes = dict.fromkeys(ATTENTION[::3], (hidden, hidden)) | dict.fromkeys(ATTENTION[1:3], (hidden, kv))
    shapes |= dict.fromkeys(MLP[:2], (hidden, intermediate)) | {"down_proj": (intermediate, hidden)}
    rows = FUSED if fused else tuple((name,) for row in FUSED for name in row)
    items = [
        LoraTarget(
            f"model.layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}",
            layer * len(rows) + number,
            index,
            *shapes[name],
        )
        for layer in range(num_layers)
        for number, names in enumerate(rows)
        for index, name in enumerate(names)
    ]
    return LoraTargets(tuple(items))


SMOLLM2 = {"num_layers": 30, "hidden": 576, "kv": 192, "intermediate": 1536}
"""`llama_targets(**SMOLLM2)`: the targets of SmolLM2-135M."""


def peft_adapter(
    folder: Path, model: PreTrainedModel, *, seed: int = 0, dtype: torch.dtype = torch.float32, **lora_config: Any
) -> Path:
    """Save a random adapter for `model` with PEFT; keyword arguments are LoraConfig's. The model is left as it was."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION + MLP), "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():  # PEFT asks transformers for properties that it is about to rename
        warnings.simplefilter("ignore", FutureWarning)
        peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**{**settings, **lora_config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data = random_weight(parameter.shape, generator).to(dtype)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def plain_adapter(
    folder: Path,
    targets: LoraTargets,
    *,
    seed: int = 0,
    r: int = 4,
    modules: Sequence[str] = ATTENTION + MLP,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write the files that PEFT would, for the targets whose last name is in `modules`; changes go to the config."""
    return write_folder(
        folder,
        plain_weights(targets, seed=seed, r=r, modules=modules, dtype=dtype),
        plain_config(r, modules, **changes),
    )


def plain_config(r: int = 4, modules: Sequence[str] = ATTENTION + MLP, **changes: Any) -> dict[str, Any]:
    """adapter_config.json with the keys that matter."""
    defaults = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": list(modules), "bias": "none"}
    return {**defaults, **changes}


def plain_weights(
    targets: LoraTargets,
    *,
    seed: int = 0,
    r: int = 4,
    modules: Sequence[str] = ATTENTION + MLP,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random lora_A [r, K] and lora_B [N, r] under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for target in targets:
        if target.path.rpartition(".")[2] in modules:
            for letter, shape in (("A", (r, target.in_features)), ("B", (target.out_features, r))):
                weights[key_of(target.path, letter)] = random_weight(shape, generator).to(dtype)
    return weights


def key_of(path: str, letter: str) -> str:
    """PEFT's name of a module's lora_A or lora_B."""
    return f"base_model.model.{path}.lora_{letter}.weight"


def random_weight(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal values, small enough that two factors of them stay near 1."""
    return torch.randn(*shape, generator=generator) * 0.1


def write_folder(
    folder: Path, weights: Mapping[str, Tensor] | bytes | None, config: Mapping[str, Any] | bytes | None
) -> Path:
    """An adapter folder of exactly these two files (None leaves one out, bytes are written as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(config, bytes):
        (folder / CONFIG_FILE).write_bytes(config)
    elif config is not None:
        (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    if isinstance(weights, bytes):
        (folder / WEIGHTS_FILE).write_bytes(weights)
    elif weights is not None:
        save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def peft_model_of(model: PreTrainedModel, folders: Mapping[str, Path]) -> Any:
    """PEFT's own model with the adapters of these folders, by name."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        names = iter(folders)
        first = next(names)
        peft_model = PeftModel.from_pretrained(copy.deepcopy(model), folders[first], adapter_name=first)
        for name in names:
            peft_model.load_adapter(folders[name], adapter_name=name)
    return peft_model.eval()


def peft_deltas(peft_model: Any, name: str) -> dict[str, Tensor]:
    """What an adapter adds to each linear in PEFT: scale * B A, [N, K], by module path."""
    from peft.tuners.lora import LoraLayer

    return {
        path: layer.get_delta_weight(name).T
        if getattr(layer, "fan_in_fan_out", False)
        else layer.get_delta_weight(name)
        for path, layer in peft_model.base_model.model.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }


def kernel_deltas(blob: Blob, storage: Storage) -> dict[str, Tensor]:
    """What the kernels' reference adds to each linear, [N, K]: LoRA applied to the unit matrix."""
    tables = LoraTables(storage.targets.groups, 2, storage.dtype)
    tables.set(1, blob.address, blob.placement.layout)
    deltas = {}
    for g, group in enumerate(storage.targets.groups):
        y = torch.zeros(group.in_features, group.columns[-1])
        segments = Segments.of([(1, range(group.in_features))])
        reference(y, torch.eye(group.in_features), segments, tables, g)
        for target in storage.targets:
            if target.group == g and blob.placement.ranks[storage.targets.by_path[target.path]]:
                deltas[target.path] = y[:, group.columns[target.index] : group.columns[target.index + 1]].T
    return deltas
