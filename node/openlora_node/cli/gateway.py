"""`openlora gateway`: the payer's OpenAI endpoint on this machine, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import typer

from .chain_errors import run as run_async
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_text

if TYPE_CHECKING:
    from ..config import Config

app = typer.Typer(help="Pay for answers: an OpenAI endpoint on this machine.", invoke_without_command=True, **NOUN)


@app.callback()
def gateway(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> int:
    """Pay for answers: an OpenAI endpoint on this machine that picks nodes, signs and pays within your caps.

    Where it listens stands on standard output, its logs on standard error.
    """
    from ..daemon.logs import set_up_logs

    loaded = load_config(config, sets)
    set_up_logs(loaded.config.log.level, loaded.config.log.format, sys.stderr)
    run_async(_serve(loaded.config, as_json))
    return Exit.OK


async def _serve(config: Config, as_json: bool) -> None:
    from ..gateway.app import open_gateway

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_gateway(config) as running:
        if as_json:
            print_json({"url": f"{running.url}/v1", "tokenFile": str(running.token_file)})
        else:
            print_text(f"OpenAI endpoint {running.url}/v1, key in {running.token_file}; Ctrl-C ends it")
        await stop.wait()
