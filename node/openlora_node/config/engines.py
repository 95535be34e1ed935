"""What a node knows of each of its engines: the short form `engine:` for one, `engines:` for several by name.

Both become one tuple of `NamedEngine`: rooms read that, never the sections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from .endpoints import HttpUrl
from .kinds import Count, Duration, Kind, ModelRef, Size
from .section import Bytes, File, Section, key, keys

MAX_ENGINES = 16
"""Of one node: two boxes' worth of devices."""
MAX_MODELS = 4
"""Base models of one node: its signed advert, at most 512 bytes, names them all and has room for addresses left."""
ONLY = "main"
"""The name of the engine that `engine:` describes."""


OWN_FLAGS = {
    "--model": "model", "--model-digest": "model", "--adapters": "adapters_dir", "--uds": "socket",
    "--device": "device", "--host-cache": "host_cache", "--max-loras": "max_loras", "--kv-cache-memory": "kv_memory",
    "--drain-timeout-s": "grace",
    "--host": "socket", "--port": "socket",
}  # fmt: skip
"""Flags of the engine that the node writes itself, and the key that decides each."""


@dataclass(frozen=True)
class EngineName(Kind):
    """What an engine is called: in the log, in metrics, in the names of its socket and its unit."""

    name = "engine name"

    def read(self, value: object) -> str:
        """A word that is safe everywhere."""
        if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,23}", value):
            raise ValueError(f"write {self.limits}")
        return value

    @property
    def limits(self) -> str:
        """How one is written."""
        return "at most 24 of a-z, 0-9 and -, a letter first"


@dataclass(frozen=True)
class Device(Kind):
    """Where an engine computes: `auto`, `cpu`, `cuda`, or one card by its index."""

    name = "device"

    def read(self, value: object) -> str:
        """Text, as nvidia-smi counts cards."""
        if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", value):
            raise ValueError(f"write {self.limits}")
        return value

    @property
    def limits(self) -> str:
        """What there is."""
        return "auto, cpu, cuda or cuda:0 to cuda:99"


@dataclass(frozen=True)
class EngineArgument(Kind):
    """One flag of `openlora engine` with its value, as one word."""

    name = "engine flag"

    def read(self, value: object) -> str:
        """`--flag` or `--flag=value`; what a key of the node decides is refused."""
        if not isinstance(value, str) or len(value) > 400 or not value.isprintable():
            raise ValueError(f"write {self.limits}")
        flag = value.partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z0-9-]+", flag):
            raise ValueError(f"write {self.limits}")
        if flag in OWN_FLAGS:
            raise ValueError(f"leave this flag out: the key {OWN_FLAGS[flag]} decides it")
        return value

    @property
    def limits(self) -> str:
        """How one is written."""
        return "--flag or --flag=value, one word"


class EachEngine(Section):
    """One engine of several, by a name of yours: the keys of `engine` that are an engine's own."""

    backend: Literal["native", "vllm"] = key("native", "This project's engine, or a vLLM server.")
    spawn: bool = key(True, "Start and supervise the native engine. false: a service or a vLLM server runs by itself.")
    socket: File | None = key(
        None, "Unix socket of the engine. null: `engine.sock`, or `engine-NAME.sock`, in the network's directory."
    )
    url: Annotated[str, HttpUrl()] | None = key(None, "vLLM server that is reached by TCP instead of a Unix socket.")
    api_key_file: File | None = key(
        None, "File of mode 0600 with the API key that the server at url asks for. null: it asks for none."
    )
    model: Annotated[str, ModelRef()] | None = key(None, "Base model to serve; a node needs one, a gateway does not.")
    device: Annotated[str, Device()] = key(
        "auto", "Device of a spawned engine: cpu, cuda, or one card as cuda:0. auto takes CUDA where it is present."
    )
    max_loras: Annotated[int, Count(1, 4096)] | None = key(
        None, "Adapter slots on the device of a spawned engine. null: the engine's default."
    )
    kv_memory: Annotated[Bytes, Size("1MiB", "4TiB")] | None = key(
        None, "Device memory for the key-value cache of a spawned engine. null: the engine's default."
    )
    host_cache: Annotated[Bytes, Size("0B", "4TiB")] = key(
        "4GiB", "Host memory for adapters that no device slot holds."
    )
    args: tuple[Annotated[str, EngineArgument()], ...] = keys(
        (), 32, "Further flags of a spawned engine, each as --flag=value; `openlora engine --help` lists them."
    )


class Engine(EachEngine):
    """The engine process and what the daemon asks of it. Several engines stand in `engines` instead."""

    adapters_dir: File | None = key(
        None, "Directory from which engines load adapters. null: `artifacts` in the network's directory."
    )
    grace: Annotated[timedelta, Duration("0s", "5m")] = key(
        "30s", "Time that running requests get to finish when the node stops; keep it below TimeoutStopSec."
    )


@dataclass(frozen=True)
class NamedEngine:
    """One engine as the rooms see it. `where` is the section that its keys stand in; `socket` holds what null means."""

    name: str
    where: str
    keys: EachEngine
    socket: Path


def named_engines(single: Engine, several: dict[str, EachEngine], state_dir: Path) -> tuple[NamedEngine, ...]:
    """The engines of a node, in the order of the file."""
    if not several:
        return (NamedEngine(ONLY, "engine", single, single.socket or state_dir / "engine.sock"),)
    return tuple(
        NamedEngine(name, f"engines.{name}", each, each.socket or state_dir / f"engine-{name}.sock")
        for name, each in several.items()
    )
