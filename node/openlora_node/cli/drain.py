"""`openlora drain`: have the running node take no more requests; with --stop, end it once those under way are done."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_text

app = typer.Typer(help="Have the running node take no more requests.", invoke_without_command=True, **NOUN)


@app.callback()
def drain(
    stop: Annotated[bool, typer.Option("--stop", help="Then stop, as SIGTERM does.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Have the running node take no more requests; peers hear of it at once. It settles on until it is stopped."""
    from ..api.client import ask

    loaded = load_config(config, sets)
    found = ask(loaded.config.control_socket, "POST", "/stop" if stop else "/drain")
    if as_json:
        print_json(found)
    else:
        grace = loaded.config.engine.grace.total_seconds()
        print_text(f"stopping: what runs has {grace:.0f} s" if stop else "draining: new requests go elsewhere")
