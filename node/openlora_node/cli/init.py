"""`openlora init`: a node from nothing. Asks for nothing but a password, and not for that with --password-file."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address
from .options import NOUN, AsJson, Sets
from .output import print_json, print_text

if TYPE_CHECKING:
    from ..daemon.setup import Made

app = typer.Typer(
    help="Make the configuration, the data directory and the node key.", invoke_without_command=True, **NOUN
)


@app.callback()
def init(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The file to write. Default: ~/.openlora/node.yaml, /etc/openlora for --service.",
        ),
    ] = None,
    network: Annotated[
        Literal["devnet", "openledger", "openledger-testnet"], typer.Option("--network", help="Network to join.")
    ] = "devnet",
    data_dir: Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Directory of all state.")] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="ADDRESS", help="Wallet that registers the node.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR|ID", help="Base model: a folder, or an artifact id.")
    ] = None,
    rpc: Annotated[
        list[str] | None, typer.Option("--rpc", metavar="URL", help="JSON-RPC endpoint; repeatable.")
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option("--deployment", metavar="FILE", help="Contracts' addresses; copied into the state.")
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Password of the node key; made up if there is no file."),
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="For the systemd units: state, key and sockets where they have them.")
    ] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make the configuration, the data directory and the node key. Replaces nothing."""
    from ..daemon.setup import SERVICE_CONFIG, Wanted, set_up

    values: dict[str, str] = {"node.network": network}
    for name, value in (("node.data_dir", data_dir), ("node.owner", owner), ("engine.model", model)):
        if value is not None:
            text = str(value.expanduser().absolute()) if isinstance(value, Path) else value
            values[name] = _model(text) if name == "engine.model" else text
    if rpc:
        values["chain.rpc_urls"] = json.dumps(rpc)
    for item in sets or ():
        name, separator, text = item.partition("=")
        if not separator:
            raise typer.BadParameter("write --set section.key=value")
        values[name] = text
    file = config or (SERVICE_CONFIG if service else Path("~/.openlora/node.yaml"))
    wanted = Wanted(
        config_file=file.expanduser().absolute(),
        values=values,
        password_file=None if password_file is None else password_file.expanduser().absolute(),
        deployment=deployment,
        service=service,
    )
    made = asyncio.run(set_up(wanted))
    print_json(_as_json(made)) if as_json else print_text(_told(made, service))


def _model(text: str) -> str:
    """A folder becomes absolute; an artifact id stays."""
    if text.startswith("sha256:"):
        return text
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, f"there is no folder {path}: name the model's, or its artifact id"
        )
    return str(path)


def _as_json(made: Made) -> dict[str, Any]:
    return {
        "config": str(made.config_file), "dataDir": str(made.data_dir), "keystore": str(made.keystore),
        "address": format_address(made.address), "newKey": made.new_key,
    }  # fmt: skip


def _told(made: Made, service: bool) -> str:
    address = format_address(made.address)
    default = Path("/etc/openlora/node.yaml")
    flag = "" if made.config_file == default or os.environ.get("OPENLORA_CONFIG") else f" --config {made.config_file}"
    run = "openlora service install" if service else f"openlora run{flag}"
    return "\n".join(
        [
            f"configuration: {made.config_file}",
            f"state:         {made.data_dir}",
            f"node key:      {address} in {made.keystore}{'' if made.new_key else ' (was there)'}",
            "",
            f"1. send some coin for gas to {address}",
            f"2. openlora operator register{flag}   (with the owner's wallet, here or on another machine)",
            f"3. openlora doctor{flag}",
            f"4. {run}",
        ]
    )
