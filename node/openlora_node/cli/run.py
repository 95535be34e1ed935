"""`openlora run`: the node itself, until SIGTERM or Ctrl-C drains it; the second one stops it at once."""

from __future__ import annotations

import asyncio

import typer

from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config

app = typer.Typer(help="Run the node.", invoke_without_command=True, **NOUN)


@app.callback()
def run(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> int:
    """Run the node: join the network, serve, settle. Logs go to standard output.

    --json prints an error that keeps it from starting as JSON; the logs' form is log.format.
    """
    loaded = load_config(config, sets)
    from ..daemon.process import run_node

    reason = asyncio.run(run_node(loaded.config))
    if reason.error is not None:
        raise reason.error
    return Exit.OK
