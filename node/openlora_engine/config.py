"""The engine's configuration: every key with its unit, bound and meaning, frozen and checked once. vLLM's names.

`python -m openlora_engine --help` and docs/engine.md are written from the same fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from .errors import Code, EngineError

AUTO = "auto"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoraDtype = Literal["auto", "float16", "bfloat16", "float32"]
Quantization = Literal["none", "int8"]


def parse_size(text: str) -> int:
    """Bytes of "2GiB", "512 MiB" or a plain number. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number and B, KiB, MiB, GiB or TiB")
    return int(float(match[1]) * _UNITS[(match[2] or "B").lower()])


def option(default: Any, meaning: str, *, low: int | None = None, metavar: str | None = None) -> Any:
    """A key: its default, what it means, its least value."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "metavar": metavar})


def size(default: int | None, meaning: str, *, low: int = 0) -> Any:
    """A key in bytes, written with a unit."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "metavar": "SIZE", "size": True})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine serves and within which bounds. Raises EngineError CONFIG_INVALID naming the flag."""

    model: Path | None = option(
        None, "Hugging Face folder of the base model; default: the model that set-up converted."
    )
    model_digest: str = option("", "The base's artifact id, sha256:<hex>, where it has one: another name for it.")
    served_model_name: str = option("", "Name in the API. Default: the folder's name.")
    adapters: Path | None = option(None, "Folder of PEFT adapters: each subfolder is one, named as it is.")
    lora_modules: tuple[str, ...] = option((), "Adapters by name: NAME=FOLDER; repeatable.", metavar="NAME=FOLDER")

    device: Device = option(AUTO, "auto takes CUDA where it is present.")
    dtype: Dtype = option(AUTO, "Of weights and activations; auto: float32 on CPU, bfloat16 on CUDA.")
    quantization: Quantization = option("none", "Weight-only quantisation of the base's linears; LoRA stays exact.")
    num_threads: int = option(0, "Threads of the CPU kernels; 0: one a core.", low=0)

    max_model_len: int = option(0, "Longest prompt plus output, tokens; 0: the model's own limit.", low=0)
    max_num_seqs: int = option(32, "Sequences that run at once.", low=1)
    max_num_batched_tokens: int = option(512, "Tokens computed in one step, prefill and decode together.", low=16)
    block_size: int = option(0, "Tokens of one KV block; 0: 256 where flash-attn serves the model, else 16.", low=0)
    kv_cache_memory: int | None = size(
        None, "Memory for KV blocks; default: what max_num_seqs can use, at most a quarter."
    )
    enable_prefix_caching: bool = option(True, "Keep the KV blocks of common prefixes, per adapter digest.")

    max_loras: int = option(32, "Device slots: adapters in one batch.", low=1)
    max_lora_rank: int = option(256, "Highest rank of an adapter, or total rank of a mix.", low=1)
    max_mix_adapters: int = option(4, "Adapters in one mix.", low=1)
    lora_dtype: LoraDtype = option(AUTO, "Storage of adapters; auto: float16 on CPU, the model's dtype on CUDA.")
    host_cache: int = size(4 << 30, "Host memory for adapters (least recently used leave).", low=1 << 20)
    max_adapter_size: int = size(2 << 30, "Largest adapter file.", low=1 << 10)

    max_queue: int = option(1024, "Sequences that may wait, all tenants; each of a request's n choices is one.", low=1)
    max_queue_per_tenant: int = option(256, "Sequences that one tenant may have waiting.", low=1)
    max_wait_s: float = option(10.0, "A request that waited longer goes before fairness.")
    stream_buffer: int = option(256, "Events a slow reader may lag before its sequence pauses.", low=1)

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        for item in dataclasses.fields(self):
            low, value = item.metadata.get("low"), getattr(self, item.name)
            if low is not None and value is not None and value < low:
                raise invalid(item.name, f"must be at least {low}")
            allowed = _choices(item)
            if allowed and value not in allowed:
                raise invalid(item.name, f"must be one of {', '.join(allowed)}")
        if self.max_queue_per_tenant > self.max_queue:
            raise invalid("max_queue_per_tenant", "must not exceed --max-queue")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise invalid(
                "max_num_batched_tokens", "must be at least --max-num-seqs: every sequence decodes a token a step"
            )
        if self.max_wait_s <= 0:
            raise invalid("max_wait_s", "must be above 0")
        for module in self.lora_modules:
            name, separator, folder = module.partition("=")
            if not (name and separator and folder):
                raise invalid("lora_modules", f"{module!r} is not NAME=FOLDER")

    @classmethod
    def from_arguments(cls, namespace: argparse.Namespace) -> Self:
        """From parsed flags; only those given override defaults."""
        names = {item.name for item in dataclasses.fields(cls)}
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vars(namespace).items()
            if name in names and value is not None
        }
        return cls(**given)


def flag(name: str) -> str:
    """The command-line flag of a key."""
    return "--" + name.replace("_", "-")


def invalid(name: str, problem: str) -> EngineError:
    """The error for a key: its flag and what to do."""
    return EngineError(Code.CONFIG_INVALID, f"{flag(name)} {problem}", param=name)


class FlagParser(Protocol):
    """An argument parser, or a group of one."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """argparse's."""
        ...


def add_flags(parser: FlagParser, config: type[EngineConfig], names: Iterable[str] | None = None) -> None:
    """Give the parser one flag a key."""
    chosen: Sequence[str] = list(names) if names is not None else [item.name for item in dataclasses.fields(config)]
    for item in dataclasses.fields(config):
        if item.name not in chosen:
            continue
        meaning = item.metadata["meaning"] + _default_text(item)
        arguments: dict[str, Any] = {"help": meaning.replace("%", "%%"), "default": None, "dest": item.name}
        if item.type == "bool":
            parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, **arguments)
            continue
        arguments["type"] = _reader(item)
        arguments["metavar"] = item.metadata.get("metavar") or _metavar(item)
        if choices := _choices(item):
            arguments["choices"], arguments["metavar"] = choices, None
        if str(item.type).startswith("tuple"):
            arguments["action"] = "append"
        parser.add_argument(flag(item.name), **arguments)


def _choices(item: dataclasses.Field[Any]) -> tuple[str, ...]:
    aliases = {"Device": Device, "Dtype": Dtype, "LoraDtype": LoraDtype, "Quantization": Quantization}
    return get_args(aliases[str(item.type)]) if str(item.type) in aliases else ()


def _reader(item: dataclasses.Field[Any]) -> Any:
    if item.metadata.get("size"):
        return parse_size
    kind = str(item.type)
    return Path if "Path" in kind else int if kind == "int" else float if kind == "float" else str


def _metavar(item: dataclasses.Field[Any]) -> str:
    return {"Path": "DIR", "Path | None": "DIR", "int": "N", "float": "SECONDS"}.get(str(item.type), "NAME")


def _default_text(item: dataclasses.Field[Any]) -> str:
    value: Any = item.default
    if value in (None, "", ()) or isinstance(value, bool):
        return ""
    if item.metadata.get("size"):
        unit = next(unit for unit in ("TiB", "GiB", "MiB", "KiB", "B") if value % _UNITS[unit.lower()] == 0)
        return f" [{value // _UNITS[unit.lower()]}{unit}]"
    return f" [{value}]"
