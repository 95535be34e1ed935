"""An engine's command line and environment from the node's configuration. Imports nothing of the engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..config.engines import NamedEngine
from ..config.schema import Config


def engine_command(
    config: Config, engine: NamedEngine, model: Path, model_digest: str = "", options: Sequence[str] = ()
) -> tuple[str, ...]:
    """How to start one engine of this node.

    `model` is the base's folder, `model_digest` its artifact id in text form where it has one, `options` further flags
    of `openlora engine`. -P: nothing that lies in the current folder is imported in its place.
    """
    keys = engine.keys
    digest = ("--model-digest", model_digest) if model_digest else ()
    slots = () if keys.max_loras is None else ("--max-loras", str(keys.max_loras))
    cache = () if keys.kv_memory is None else ("--kv-cache-memory", f"{keys.kv_memory}B")
    return (
        *(sys.executable, "-P", "-m", "openlora_engine"),
        *("--model", str(model), *digest),
        *("--adapters", str(config.adapters_dir)),
        *("--uds", str(engine.socket)),
        *("--device", keys.device.partition(":")[0], *slots, *cache),
        *("--host-cache", f"{keys.host_cache}B"),
        *("--drain-timeout-s", f"{config.engine.grace.total_seconds():g}"),
        *keys.args,
        *options,
    )


def engine_environment(engine: NamedEngine) -> dict[str, str]:
    """What the process of an engine on one card sees: that card alone, counted as nvidia-smi counts."""
    _, _, card = engine.keys.device.partition(":")
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": card} if card else {}
