"""An adapter as the kernels compute it equals the adapter as PEFT computes it, for every setting that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, PreTrainedModel

from openlora_engine.adapters.blob import Blob, Storage
from openlora_engine.adapters.folder import AdapterRoot
from openlora_engine.adapters.source import Source, identify, load
from openlora_engine.adapters.targets import LoraTarget, LoraTargets
from support.engine_adapters import (
    WEIGHTS_FILE,
    kernel_deltas,
    peft_adapter,
    peft_deltas,
    peft_model_of,
    plain_config,
    plain_weights,
    targets_of,
    tiny_model,
    write_folder,
)

PATTERNS = {
    "defaults": {},
    "rank_pattern": {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.(up|gate)_proj": 7, "down_proj": 1}},
    "alpha_pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 31, "v_proj": 0.5, "self_attn.v_proj": 9}},
    "both patterns": {"rank_pattern": {"o_proj": 5}, "alpha_pattern": {"o_proj": 11, ".*o_proj": 2}},
    "rslora": {"use_rslora": True, "r": 5, "lora_alpha": 7},
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"k_proj": 3}},
    "regex targets": {"target_modules": r".*\.layers\.[01]\.(self_attn\.(q|o)|mlp\.up)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "some targets": {"target_modules": ["v_proj", "model.layers.1.mlp.down_proj"]},
    "excluded": {"exclude_modules": ["k_proj", "model.layers.0.mlp.up_proj"]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rank one": {"r": 1, "lora_alpha": 1},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def stored(folder: Path, storage: Storage) -> Blob:
    source = Source(AdapterRoot(folder), ())
    return load(source, identify(source, storage), storage)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(
            found[path], delta.float(), rtol=tolerance, atol=tolerance * float(delta.abs().max())
        )


@pytest.mark.parametrize("name", PATTERNS)
def test_deltas_equal_pefts(tmp_path: Path, model: PreTrainedModel, name: str) -> None:
    settings: dict[str, Any] = PATTERNS[name]
    folder = peft_adapter(tmp_path / "a", model, seed=3, **settings)
    expected = peft_deltas(peft_model_of(model, {"a": folder}), "a")
    for fused in (True, False):
        storage = Storage(targets_of(model, fused=fused), torch.float32)
        assert_same(kernel_deltas(stored(folder, storage), storage), expected, 1e-6)


@pytest.mark.parametrize("storage_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_file_dtype_is_stored_as_torch_would_round_it(
    tmp_path: Path, file_dtype: torch.dtype, storage_dtype: torch.dtype
) -> None:
    targets = targets_of(tiny_model())
    weights = plain_weights(targets, r=3, dtype=file_dtype)
    storage = Storage(targets, storage_dtype)
    blob = stored(write_folder(tmp_path / "a", weights, plain_config(3)), storage)
    for t, target in enumerate(targets):
        prefix = f"base_model.model.{target.path}.lora_"
        assert torch.equal(blob.a(targets, t), weights[f"{prefix}A.weight"].to(storage_dtype))
        assert torch.equal(blob.b(targets, t), weights[f"{prefix}B.weight"].to(storage_dtype).T)
    assert blob.rank_scales().tolist() == [2.0] * 3 * len(targets)


def test_tensors_of_mixed_dtypes_in_any_order_are_read(tmp_path: Path) -> None:
    """Odd element counts of a half put the float32 tensor behind it on an address that is no multiple of four."""
    targets = targets_of(tiny_model())
    weights = plain_weights(targets, r=1)
    dtypes = (torch.float16, torch.float32, torch.bfloat16)
    mixed = {name: weight.to(dtypes[i % 3]) for i, (name, weight) in enumerate(reversed(weights.items()))}
    storage = Storage(targets, torch.float32)
    blob = stored(write_folder(tmp_path / "a", mixed, plain_config(1)), storage)
    for t, target in enumerate(targets):
        name = f"base_model.model.{target.path}.lora_B.weight"
        assert torch.equal(blob.b(targets, t), mixed[name].float().T)


def test_a_file_of_many_chunks_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openlora_engine.adapters.weights.CHUNK", 700)
    targets = targets_of(tiny_model())
    weights = plain_weights(targets)
    storage = Storage(targets, torch.float32)
    blob = stored(write_folder(tmp_path / "a", weights, plain_config()), storage)
    for t, target in enumerate(targets):
        assert torch.equal(blob.a(targets, t), weights[f"base_model.model.{target.path}.lora_A.weight"])


def test_conv1d_of_gpt2_equals_pefts(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=24, n_layer=2, n_head=3)
    model = tiny_model(config)
    names = {"attn.c_attn": (24, 72), "attn.c_proj": (24, 24), "mlp.c_fc": (24, 96), "mlp.c_proj": (96, 24)}
    targets = LoraTargets(
        tuple(
            LoraTarget(f"transformer.h.{layer}.{name}", layer * len(names) + group, 0, k, n)
            for layer in range(2)
            for group, (name, (k, n)) in enumerate(names.items())
        )
    )
    modules = ["c_attn", "c_proj", "c_fc"]
    folder = peft_adapter(tmp_path / "a", model, target_modules=modules, fan_in_fan_out=True)
    storage = Storage(targets, torch.float32)
    expected = peft_deltas(peft_model_of(model, {"a": folder}), "a")
    assert_same(kernel_deltas(stored(folder, storage), storage), expected, 1e-6)


def test_a_digest_follows_weights_and_configuration(tmp_path: Path, model: PreTrainedModel) -> None:
    storage = Storage(targets_of(model), torch.float16)

    def digest(name: str) -> str:
        return identify(Source(AdapterRoot(tmp_path / name), ()), storage).digest

    first = peft_adapter(tmp_path / "first", model)
    peft_adapter(tmp_path / "same", model)
    peft_adapter(tmp_path / "other-alpha", model, lora_alpha=9)
    peft_adapter(tmp_path / "other-weights", model, seed=1)
    assert digest("first") == digest("same")
    assert len({digest(name) for name in ("first", "other-alpha", "other-weights")}) == 3

    before = digest("first")
    weights = load_file(first / WEIGHTS_FILE)
    key = next(iter(weights))
    weights[key][0, 0] = torch.nextafter(weights[key][0, 0], torch.tensor(9.0))
    save_file(weights, first / WEIGHTS_FILE)
    assert digest("first") != before
