"""Quantised bases: int8 weights by torchao, and which ready-quantised folders load. LoRA stays in full precision.

int8 is weight-only: one symmetric scale an output channel, activations untouched. Only the linears that adapters can
reach are quantised; embeddings, LM head, norms and experts stay as they are. It saves memory, not time: on CPU each
call rebuilds the float weight and the packed kernels are not used (two cores: prefill 360 tokens/s instead of 430, one
stream's decode 9 instead of 36).

`python benchmarks/perplexity.py` on the default model, 4,096 tokens of Python's reference text, against fp32's 14.70:
int8 14.75 (+0.3 %, the same most likely token at 96.4 % of places), weights 220 MB instead of 651. int4 in groups of 32
shuffled columns 18.35 (+24.8 %, 74.8 %), in groups of 64 19.4 to 20.3: int4 is not offered. (Groups of 32 in their own
order read +0.0 %, since this model's file is 4-bit in just those groups; that says nothing of other models.)

Ready-quantised folders (GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors) load through transformers and the package
that has their kernels. None of them has run here: there is neither such a checkpoint nor a GPU where this was written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import Code, EngineError
from .architectures import Architecture

TORCHAO = "pip install 'openlora-node[quantization]'"


@dataclass(frozen=True)
class QuantizedFormat:
    """What a folder's `quantization_config` asks of the machine: packages (import name, pip name), perhaps a GPU."""

    method: str
    packages: tuple[tuple[str, str], ...]
    needs_cuda: bool = False


ACCELERATE = ("accelerate", "accelerate")
GPTQMODEL = ("gptqmodel", "gptqmodel")
FORMATS = (
    QuantizedFormat("gptq", (GPTQMODEL, ("optimum", "optimum"))),
    QuantizedFormat("awq", (GPTQMODEL, ACCELERATE)),
    QuantizedFormat("bitsandbytes", (("bitsandbytes", "bitsandbytes"), ACCELERATE)),
    QuantizedFormat("fp8", (ACCELERATE, ("kernels", "kernels")), needs_cuda=True),
    QuantizedFormat("fbgemm_fp8", (("fbgemm_gpu", "fbgemm-gpu"), ACCELERATE), needs_cuda=True),
    QuantizedFormat("compressed-tensors", (("compressed_tensors", "compressed-tensors"),)),
)
_BY_METHOD = {each.method: each for each in FORMATS}


def quantize(causal_lm: nn.Module, architecture: Architecture, method: str) -> int:
    """Quantise the layers' linears in place, before they are wrapped for LoRA; returns how many.

    Raises EngineError CONFIG_INVALID where torchao is missing, the model is quantised already, or `method` is int4.
    """
    if method != "int8":
        raise invalid(
            f"--quantization {method} is not offered: rounding to 4 bits without calibration raised the default "
            "model's perplexity by a quarter; use int8, or a folder that GPTQ or AWQ has calibrated"
        )
    if getattr(causal_lm, "is_quantized", False):
        raise invalid("--quantization: the model's folder is quantised already; leave the flag out")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-untyped]
    except ImportError as error:
        raise invalid(f"--quantization {method} needs torchao: {TORCHAO}") from error
    chosen = set(_linears(causal_lm, architecture))
    quantize_(causal_lm, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=lambda module, _: module in chosen)
    return len(chosen)


def check_prequantized(config: Any, *, quantization: str, device: torch.device) -> QuantizedFormat | None:
    """The format of a folder that is quantised already, None for a plain one. To be called before weights are read.

    `config` is the transformers config. Raises EngineError MODEL_UNSUPPORTED for an unknown format or a missing GPU,
    CONFIG_INVALID for missing packages (naming what to install) or for --quantization on top.
    """
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return None
    method = declared.get("quant_method") if isinstance(declared, dict) else getattr(declared, "quant_method", None)
    found = _BY_METHOD.get(str(getattr(method, "value", method)))
    if found is None:
        served = ", ".join(_BY_METHOD)
        raise EngineError(Code.MODEL_UNSUPPORTED, f"quantised as {method}: of quantised folders these load: {served}")
    if quantization != "none":
        raise invalid(f"--quantization {quantization}: the folder is quantised already ({found.method}); leave it out")
    if found.needs_cuda and device.type != "cuda":
        raise EngineError(Code.MODEL_UNSUPPORTED, f"{found.method} weights need a CUDA device; use a plain folder here")
    missing = [pip for name, pip in found.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise invalid(f"{found.method} weights need more packages: pip install {' '.join(missing)}")
    return found


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors in which a parameter is held: itself, or the parts of torchao's (codes, scales, zero points).

    A quantised tensor reports the size of the float tensor that it stands for, and address 0; its parts do not lie.
    """
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from stored_tensors(getattr(tensor, name))
    else:
        yield tensor


def invalid(message: str) -> EngineError:
    """The error of a configuration that cannot start."""
    return EngineError(Code.CONFIG_INVALID, message)


def _linears(causal_lm: nn.Module, architecture: Architecture) -> Iterator[nn.Linear]:
    """Every linear that adapters can reach; GPT-2's transposed ones become plain linears on the way."""
    paths = [path for group in architecture.projections for path in group]
    for layer in causal_lm.get_submodule(architecture.layers).children():
        for path in paths:
            linear = layer.get_submodule(path)
            if isinstance(linear, Conv1D):
                parent, _, name = path.rpartition(".")
                linear = _plain(linear)
                setattr(layer.get_submodule(parent), name, linear)
            assert isinstance(linear, nn.Linear), f"{path} of {architecture.model_type} is a {type(linear).__name__}"
            yield linear


def _plain(linear: Conv1D) -> nn.Linear:
    weight: Tensor = linear.weight
    plain = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    plain.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
    plain.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return plain
