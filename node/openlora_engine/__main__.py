"""`python -m openlora_engine`: one engine behind one socket, until SIGTERM. What `openlora engine` runs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version


def parser() -> argparse.ArgumentParser:
    """All flags: the engine's, then the server's."""
    from .config import EngineConfig, add_flags
    from .server.options import add_server_flags

    flags = argparse.ArgumentParser(
        prog="openlora engine",
        description="Serve one base model and thousands of LoRA adapters over it, in the OpenAI dialect.",
        allow_abbrev=False,
    )
    flags.add_argument("--version", action="version", version=f"openlora engine {version('openlora-node')}")
    flags.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add_flags(flags.add_argument_group("engine"), EngineConfig)
    add_server_flags(flags.add_argument_group("server"))
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve. Returns the exit code: 0 after a drain; what kept it from starting is one line, in `openlora`'s codes."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout
    )
    for library in ("torch", "torchao", "transformers"):  # before their import: that is when they are chatty
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torch takes seconds to import: --help and mistyped flags need not wait for it.
    from .errors import Code, EngineError
    from .launch import run

    try:
        return asyncio.run(run(options, os.environ))
    except EngineError as error:
        sys.stderr.write(f"openlora engine: {error.message} ({error.code.value})\n")
        return {Code.CONFIG_INVALID: 3, Code.MODEL_UNSUPPORTED: 3, Code.DOES_NOT_FIT: 7}.get(error.code, 1)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
