"""int8 weights: what is quantised, how far it may stray, that LoRA stays exact; folders that are quantised already."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from openlora_engine.errors import Code, EngineError
from openlora_engine.models.attention import register
from openlora_engine.models.loading import LoadedModel, rebuild
from openlora_engine.models.quantization import FORMATS, check_prequantized, quantize, stored_tensors
from openlora_kernels import BlobLayout, LoraTables, group_weights
from support.engine_models import VOCAB, Driver, architecture, tiny_causal_lm

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODELS = ("llama-bias", "gpt2", "phi3", "gpt_neox", "qwen3_moe")


def linears(causal_lm: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules that adapters can reach, by full name."""
    row = architecture(name)
    layers = causal_lm.get_submodule(row.layers)
    return {
        f"{row.layers}.{number}.{path}": layer.get_submodule(path)
        for number, layer in enumerate(layers.children())
        for group in row.projections
        for path in group
    }


def weight_of(linear: nn.Module) -> Tensor:
    """[N, K] in float32."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight.t() if isinstance(linear, Conv1D) else weight


def quantized(name: str) -> Any:
    """The tiny model, its linears in int8."""
    torchao = pytest.importorskip("torchao")
    assert torchao
    causal_lm = tiny_causal_lm(name)
    assert quantize(causal_lm, architecture(name), "int8") == len(linears(causal_lm, name))
    return causal_lm


def dequantized(name: str, *, attention: str = "eager") -> Any:
    """The tiny model with the float weights for which the int8 codes stand."""
    exact, source = tiny_causal_lm(name, attention=attention), linears(quantized(name), name)
    for path, linear in linears(exact, name).items():
        weight_of(linear).copy_(source[path].weight.dequantize())  # type: ignore[operator, union-attr]
    return exact


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_reachable_linears_are_rounded_and_nothing_else(name: str) -> None:
    exact, rounded = tiny_causal_lm(name), quantized(name)
    reachable = linears(exact, name)
    for path, linear in linears(rounded, name).items():
        want: Tensor = weight_of(reachable[path])
        step = want.abs().amax(1, keepdim=True) / 127
        got: Tensor = linear.weight.dequantize()  # type: ignore[operator, union-attr, assignment]
        assert bool(((got - want).abs() <= step * 0.51).all())
    untouched = dict(exact.named_parameters())
    for path in reachable:
        untouched.pop(f"{path}.weight")
    for path, parameter in untouched.items():
        assert torch.equal(rounded.get_parameter(path), parameter)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_dequantised_weights(name: str) -> None:
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        got, want, exact = (lm(ids).logits for lm in (quantized(name), dequantized(name), tiny_causal_lm(name)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert float((got - exact).abs().max()) > 1e-4 * float(want.abs().max())  # int8 was really at work


def served(causal_lm: Any, name: str, quantization: str) -> LoadedModel:
    return rebuild(causal_lm, architecture(name), max_num_tokens=64, fuse=False, quantization=quantization)


def with_adapter(model: LoadedModel) -> tuple[Driver, Tensor]:
    """A driver whose slot 0 holds a random rank-4 adapter on every linear, and the memory that keeps it."""
    groups = model.targets.groups
    layout = BlobLayout.of(groups, [[4] * group.num_targets for group in groups], torch.float32)
    blob = torch.zeros(layout.nbytes, dtype=torch.uint8)
    torch.manual_seed(5)
    for number, group in enumerate(groups):
        parts = group_weights(blob, layout, group, number, torch.float32)
        for part in (parts.a, *parts.b, parts.scale):
            part.normal_(std=0.2)
    tables = LoraTables(groups, 1, torch.float32)
    tables.set(0, blob.data_ptr(), layout)
    return Driver(model, tables), blob


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_on_top_stays_in_full_precision(name: str) -> None:
    pytest.importorskip("torchao")
    int8, _blob = with_adapter(served(tiny_causal_lm(name, attention=register()), name, "int8"))
    plain, _other = with_adapter(served(dequantized(name, attention=register()), name, "none"))
    ids = torch.randint(3, VOCAB, (21,), generator=torch.Generator().manual_seed(4)).tolist()
    results = []
    for driver in (int8, plain):
        adapted, base = driver.row(ids, slot=0), driver.row(ids)
        results.append(torch.cat([driver.step((adapted, 20), (base, 20)), driver.step((adapted, 1), (base, 1))]))
    got, want = results
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert not torch.allclose(want[0], want[1], rtol=1e-2)  # the adapter was at work


def test_stored_tensors_are_a_quarter_and_a_scale_a_channel() -> None:
    causal_lm = quantized("llama")
    weight: Tensor = causal_lm.model.layers[0].mlp.down_proj.weight
    parts = list(stored_tensors(weight))
    n, k = weight.shape
    assert n * k + 4 * n <= sum(part.nbytes for part in parts) <= n * k + 8 * n
    assert all(part.data_ptr() for part in parts)
    plain = causal_lm.model.embed_tokens.weight
    assert next(stored_tensors(plain)) is plain


def test_without_torchao_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(EngineError, match=r"pip install 'openlora-node\[quantization\]'") as caught:
        quantize(tiny_causal_lm("llama"), architecture("llama"), "int8")
    assert caught.value.code is Code.CONFIG_INVALID


def test_int4_is_refused_with_the_reason() -> None:
    with pytest.raises(EngineError, match=r"without calibration.*GPTQ or AWQ") as caught:
        quantize(tiny_causal_lm("llama"), architecture("llama"), "int4")
    assert caught.value.code is Code.CONFIG_INVALID


def test_a_quantised_model_is_not_quantised_again() -> None:
    causal_lm = tiny_causal_lm("llama")
    causal_lm.is_quantized = True
    with pytest.raises(EngineError, match="quantised already"):
        quantize(causal_lm, architecture("llama"), "int8")


def declares(method: Any, *, as_dict: bool = True) -> Any:
    declared = {"quant_method": method} if as_dict else SimpleNamespace(quant_method=SimpleNamespace(value=method))
    return SimpleNamespace(quantization_config=declared)


def found(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Only these packages are installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in names else None)


def test_a_plain_folder_passes() -> None:
    config = tiny_causal_lm("llama").config
    assert check_prequantized(config, quantization="int8", device=CPU) is None


@pytest.mark.parametrize("each", FORMATS, ids=lambda each: each.method)
@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "object"])
def test_a_format_whose_packages_are_there_passes(monkeypatch: pytest.MonkeyPatch, each: Any, as_dict: bool) -> None:
    found(monkeypatch, *(name for name, _ in each.packages))
    assert check_prequantized(declares(each.method, as_dict=as_dict), quantization="none", device=CUDA) is each


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("gptq", "pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel accelerate"),
        ("bitsandbytes", "pip install bitsandbytes accelerate"),
        ("fp8", "pip install accelerate kernels"),
        ("fbgemm_fp8", "pip install fbgemm-gpu accelerate"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, method: str, command: str) -> None:
    found(monkeypatch)
    with pytest.raises(EngineError) as caught:
        check_prequantized(declares(method), quantization="none", device=CUDA)
    assert caught.value.code is Code.CONFIG_INVALID
    assert caught.value.message.endswith(command)


def test_only_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "gptqmodel")
    with pytest.raises(EngineError, match=r"pip install optimum$"):
        check_prequantized(declares("gptq"), quantization="none", device=CPU)


@pytest.mark.parametrize("method", ["quip", None, 7])
def test_unknown_formats_are_refused_with_the_list(method: Any) -> None:
    with pytest.raises(EngineError, match="gptq, awq, bitsandbytes") as caught:
        check_prequantized(declares(method), quantization="none", device=CUDA)
    assert caught.value.code is Code.MODEL_UNSUPPORTED


def test_formats_of_gpus_are_refused_on_cpu() -> None:
    for each in FORMATS:
        if each.needs_cuda:
            with pytest.raises(EngineError, match="CUDA device") as caught:
                check_prequantized(declares(each.method), quantization="none", device=CPU)
            assert caught.value.code is Code.MODEL_UNSUPPORTED


def test_the_flag_on_top_of_a_quantised_folder_is_refused() -> None:
    with pytest.raises(EngineError, match="leave it out") as caught:
        check_prequantized(declares("gptq"), quantization="int8", device=CUDA)
    assert caught.value.code is Code.CONFIG_INVALID
