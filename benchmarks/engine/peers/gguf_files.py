"""Models and adapters in llama.cpp's format: the default model at any weight type, PEFT folders as LoRA files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from openlora_engine.default_model import gguf_path

HEADS, KV_HEADS = 9, 3
WEIGHT_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def model_file(weights: str, folder: Path) -> Path:
    """The default model with every matrix stored as `weights`; q4_1 is the package's own file."""
    if weights == "q4_1":
        return gguf_path()
    path = folder / f"smollm2-135m-{weights}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(".part")
        _rewrite(gguf_path(), work, WEIGHT_TYPES[weights])
        work.rename(path)
    return path


def _rewrite(source: Path, out: Path, weights: gguf.GGMLQuantizationType) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        stored = weights if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quantize(data, stored), raw_dtype=stored)
    _finish(writer)


def lora_file(peft_folder: Path, folder: Path) -> Path:
    """A PEFT folder of SmolLM2 as a float16 GGUF LoRA file, below `folder`, made once."""
    path = folder / f"{peft_folder.name}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".part")
    writer = gguf.GGUFWriter(work, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = json.loads((peft_folder / "adapter_config.json").read_text())["lora_alpha"]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name, weight in load_file(peft_folder / "adapter_model.safetensors").items():
        layer, _, rest = name.partition("layers.")[2].partition(".")
        target, _, part = rest.removesuffix(".weight").rpartition(".")
        writer.add_tensor(f"blk.{layer}.{_NAMES[target]}.weight.{part.lower()}", _ordered(weight, target, part))
    _finish(writer)
    work.rename(path)
    return path


def _ordered(weight: NDArray[Any], target: str, part: str) -> NDArray[Any]:
    """B of q and k in GGUF's row order: the two halves of a head interleaved."""
    heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(target)
    if heads is None or part != "lora_B":
        return weight
    rows, rank = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank))


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
