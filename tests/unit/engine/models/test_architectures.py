"""Refusals at load: what no equality test covers is not served, and the reason is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from openlora_engine.config import EngineConfig
from openlora_engine.errors import Code, EngineError
from openlora_engine.models.architectures import ARCHITECTURES, architecture_of, check_rope
from openlora_engine.models.loading import load_model, load_tokenizer
from support.engine_models import LLAMA, tiny_causal_lm


def refused(config: Any) -> str:
    with pytest.raises(EngineError) as caught:
        architecture_of(config)
    assert caught.value.code is Code.MODEL_UNSUPPORTED
    return caught.value.message


@pytest.mark.parametrize("kind", ["FalconConfig", "BloomConfig", "MptConfig", "BertConfig", "T5Config", "MambaConfig"])
def test_architectures_without_a_gate_are_refused(kind: str) -> None:
    message = refused(getattr(transformers, kind)())
    assert "has no equality test here; served are gemma2" in message


def test_another_head_on_a_served_body_is_refused() -> None:
    config = transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"])
    assert "LlamaForSequenceClassification is not a causal language model" in refused(config)


def test_attention_outside_the_interface_is_refused() -> None:
    assert "reorder_and_upcast_attn" in refused(transformers.GPT2Config(reorder_and_upcast_attn=True))
    assert "is not causal" in refused(transformers.Gemma3TextConfig(use_bidirectional_attention=True))


def test_rope_that_depends_on_the_batch_is_refused_beyond_its_original_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    config = transformers.LlamaConfig(**LLAMA | {"rope_parameters": rope})
    check_rope(config, 256)
    with pytest.raises(EngineError, match="--max-model-len 256 or less"):
        check_rope(config, 257)


def test_the_table_has_one_row_a_model_type() -> None:
    assert len({row.model_type for row in ARCHITECTURES}) == len(ARCHITECTURES)


class TestFolders:
    """What load_model says to folders that are not what it needs."""

    def load(self, folder: Path, **values: Any) -> EngineError:
        with pytest.raises(EngineError) as caught:
            load_model(EngineConfig(**values), folder)
        return caught.value

    def test_no_config(self, tmp_path: Path) -> None:
        assert self.load(tmp_path).code is Code.CONFIG_INVALID

    def test_config_that_is_no_json(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        assert self.load(tmp_path).code is Code.MODEL_UNSUPPORTED

    def test_remote_code_is_never_run(self, tmp_path: Path) -> None:
        config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}, "architectures": ["Evil"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
        assert self.load(tmp_path).code is Code.MODEL_UNSUPPORTED

    def test_pickled_weights_are_not_read(self, tmp_path: Path) -> None:
        transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        error = self.load(tmp_path)
        assert error.code is Code.CONFIG_INVALID
        assert "safetensors" in error.message

    def test_a_length_beyond_the_models(self, tmp_path: Path) -> None:
        tiny_causal_lm("llama").save_pretrained(tmp_path)
        assert "--max-model-len 999 exceeds" in self.load(tmp_path, max_model_len=999).message

    def test_a_device_that_is_not_there(self, tmp_path: Path) -> None:
        tiny_causal_lm("llama").save_pretrained(tmp_path)
        assert "--device cuda" in self.load(tmp_path, device="cuda").message
        assert "--dtype bfloat16 is for CUDA" in self.load(tmp_path, dtype="bfloat16").message

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError) as caught:
            load_tokenizer(tmp_path)
        assert caught.value.code is Code.MODEL_UNSUPPORTED

    def test_a_whole_folder_loads(self, tmp_path: Path) -> None:
        tiny_causal_lm("llama").save_pretrained(tmp_path)
        model = load_model(EngineConfig(max_model_len=100, served_model_name="tiny"), tmp_path)
        assert (model.name, model.max_model_len, model.eos_token_ids) == ("tiny", 100, frozenset({2}))
        assert model.num_fused_layers == 3
        assert len(model.targets) == 3 * 7
        assert model.weights_nbytes > 0
