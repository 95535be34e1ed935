"""Folders to publish: small adapters, bases and datasets, and one as large as a test wants."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from openlora_node.artifacts import About
from openlora_node.protocol.chunks import CHUNK_SIZE

BASE_ID = bytes(range(32))
ABOUT = About(base=BASE_ID)


def safetensors(size: int, seed: int = 0) -> bytes:
    """A safetensors file with one tensor of about `size` random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def adapter_folder(folder: Path, size: int = 1000, seed: int = 0) -> Path:
    """A PEFT folder whose weights have about `size` bytes."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16.5, "target_modules": ["v_proj", "q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(size, seed))
    (folder / "optimizer.pt").write_bytes(b"a trainer's leftover")
    return folder


def base_folder(folder: Path, size: int = 1000) -> Path:
    """A small base model."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors").write_bytes(safetensors(size))
    return folder


CONTRIBUTOR = "0xd2644a4ab7957A869C854cc4015dde060f3Bd643"


def dataset_folder(folder: Path, files: int = 1, lines: int = 3) -> Path:
    """A dataset in that many files."""
    folder.mkdir(parents=True)
    for number in range(files):
        text = "".join(sample_line(CONTRIBUTOR, f"{number}-{line}") for line in range(lines))
        (folder / f"part{number:04d}.jsonl").write_text(text)
    return folder


def sample_line(contributor: str, text: str) -> str:
    """One canonical line of a dataset."""
    sample = {"contributor": contributor, "licence": "CC0-1.0", "sample": {"text": text}}
    return json.dumps(sample, sort_keys=True, separators=(",", ":")) + "\n"


def chunks(count: float) -> int:
    """Bytes of so many chunks."""
    return int(count * CHUNK_SIZE)
