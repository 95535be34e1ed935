"""The engine's command line from the node's configuration. Imports nothing of the engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..config.schema import Config


def engine_command(config: Config, model: Path, model_digest: str = "", options: Sequence[str] = ()) -> tuple[str, ...]:
    """How to start the engine for this node.

    `model` is the base's folder, `model_digest` its artifact id in text form where it has one, `options` further flags
    of `openlora engine`. -P: nothing that lies in the current folder is imported in its place.
    """
    digest = ("--model-digest", model_digest) if model_digest else ()
    return (
        *(sys.executable, "-P", "-m", "openlora_engine"),
        *("--model", str(model), *digest),
        *("--adapters", str(config.adapters_dir)),
        *("--uds", str(config.engine_socket)),
        *("--host-cache", f"{config.engine.host_cache}B"),
        *("--drain-timeout-s", f"{config.engine.grace.total_seconds():g}"),
        *options,
    )
