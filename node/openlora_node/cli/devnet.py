"""`openlora devnet`: a chain on this machine with everything deployed and funded."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..protocol.ids import format_address
from .chain_errors import run
from .options import NOUN, AsJson
from .output import print_json, print_table

app = typer.Typer(help="Run a development chain on this machine.", invoke_without_command=True, **NOUN)


@app.callback()
def devnet(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where its state and deployment file live.")
    ] = Path("~/.openlora/devnet/chain"),
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port on 127.0.0.1; 0 picks one.")] = 8545,
    engine: Annotated[
        Literal["auto", "embedded", "anvil"], typer.Option("--engine", help="auto: anvil where it is on PATH.")
    ] = "auto",
    block_time: Annotated[float, typer.Option("--block-time", min=0.1, help="Seconds between empty blocks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Start, deploy the contracts, fund the named accounts, then run until interrupted. Its keys are public."""
    run(_serve(directory.expanduser(), port, engine, block_time, as_json))


async def _serve(
    directory: Path, port: int, engine: Literal["auto", "embedded", "anvil"], block_time: float, as_json: bool
) -> None:
    from openlora_chain.devnet.devnet import devnet as start

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(start(directory, port=port, engine=engine, block_time_s=block_time))
        accounts = {name: format_address(address) for name, address in running.deployment.accounts.items()}
        if as_json:
            body = {"url": running.url, "engine": running.engine, "deploymentFile": str(running.deployment_file)}
            print_json(body | {"chainId": running.deployment.chain_id, "accounts": accounts})
        else:
            print(f"devnet: {running.url}, chain {running.deployment.chain_id}, {running.engine}")
            print(f"deployment: {running.deployment_file}")
            print_table(("account (public key!)", "address"), accounts.items())
            print("ready; stop with Ctrl-C", flush=True)
        await stop.wait()
