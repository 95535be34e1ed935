"""PEFT folders of random LoRA weights for SmolLM2-135M, made from a seed: hundreds a second, no two alike.

Every adapter's weights are a window of one pool of normal numbers, at an offset of its own: distinct bytes (so distinct
digests) without drawing half a million numbers an adapter. B is not zero, so that every adapter changes the output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LAYERS, HIDDEN, FEED_FORWARD, KV = 30, 576, 1536, 192
SHAPES = {  # projection -> (in, out), in PEFT's order of names
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, FEED_FORWARD),
    "mlp.up_proj": (HIDDEN, FEED_FORWARD),
    "mlp.down_proj": (FEED_FORWARD, HIDDEN),
}
ALL_LINEAR = tuple(SHAPES)
Q_AND_V = ("self_attn.q_proj", "self_attn.v_proj")
MIXED_RANKS = (8, 16, 32, 64)

_POOL_LENGTH = 1 << 24
_STD = 0.03  # of A and B: with alpha = 2 r an adapter moves a linear by a tenth of its norm


@dataclass(frozen=True)
class AdapterKind:
    """What the adapters of a set have in common; ranks are taken in turn."""

    name: str
    targets: tuple[str, ...]
    ranks: tuple[int, ...]

    def rank(self, index: int) -> int:
        """The rank of adapter number `index`."""
        return self.ranks[index % len(self.ranks)]


QV_R8 = AdapterKind("qv-r8", Q_AND_V, (8,))
ALL_R16 = AdapterKind("all-r16", ALL_LINEAR, (16,))
KINDS = {
    kind.name: kind for kind in (QV_R8, ALL_R16, *(AdapterKind(f"qv-r{rank}", Q_AND_V, (rank,)) for rank in (16, 64)))
} | {"qv-mixed": AdapterKind("qv-mixed", Q_AND_V, MIXED_RANKS)}


def adapter_name(kind: AdapterKind, index: int) -> str:
    """`qv-r8-00017`."""
    return f"{kind.name}-{index:05d}"


class AdapterSet:
    """A folder of adapters of one kind that grows on demand: `root/<kind>/<name>/adapter_model.safetensors`."""

    def __init__(self, root: Path, kind: AdapterKind, seed: int = 0) -> None:
        self.folder = root / kind.name
        self.kind = kind
        self._seed = seed
        self._headers: dict[int, tuple[bytes, int]] = {}

    def names(self, count: int) -> tuple[str, ...]:
        """The first `count` adapters, written where they are not there yet."""
        names = tuple(adapter_name(self.kind, index) for index in range(count))
        for index, name in enumerate(names):
            if not (self.folder / name).exists():
                self._write(index, self.folder / name)
        return names

    def path(self, name: str) -> Path:
        """The PEFT folder of an adapter."""
        return self.folder / name

    def remove(self) -> None:
        """Give the disk space back."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, index: int, folder: Path) -> None:
        rank = self.kind.rank(index)
        if rank not in self._headers:
            self._headers[rank] = _header(self.kind.targets, rank)
        header, values = self._headers[rank]
        offset = int(np.random.default_rng([self._seed, index]).integers(_POOL_LENGTH - values))
        work = folder.with_name(f".{folder.name}")  # a folder that is there is whole
        work.mkdir(parents=True, exist_ok=True)
        with (work / "adapter_model.safetensors").open("wb") as file:
            file.write(header)
            file.write(_pool()[offset : offset + values].data)
        (work / "adapter_config.json").write_text(json.dumps(_config(self.kind.targets, rank)))
        work.rename(folder)


@cache
def _pool() -> NDArray[np.float16]:
    return (np.random.default_rng(0).standard_normal(_POOL_LENGTH, np.float32) * _STD).astype(np.float16)


def _header(targets: Sequence[str], rank: int) -> tuple[bytes, int]:
    """The safetensors header of such an adapter and how many float16 values follow it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for layer in range(LAYERS):
        for target in targets:
            inside, outside = SHAPES[target]
            for part, shape in (("lora_A", (rank, inside)), ("lora_B", (outside, rank))):
                begin, end = end, end + 2 * shape[0] * shape[1]
                entries[f"base_model.model.model.layers.{layer}.{target}.{part}.weight"] = {
                    "dtype": "F16",
                    "shape": shape,
                    "data_offsets": (begin, end),
                }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end // 2


def _config(targets: Sequence[str], rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "smollm2-135m-instruct",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": [target.rpartition(".")[2] for target in targets],
        "bias": "none",
        "inference_mode": True,
    }
