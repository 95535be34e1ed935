"""`openlora peers`: who is connected to the running node, and who is kept out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

app = typer.Typer(help="Look at connected peers and keep some out.", no_args_is_help=True, **NOUN)

PeerId = Annotated[str, typer.Argument(metavar="PEER", help="Peer id, such as 16Uiu2HA…")]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command(name="list")
def list_peers(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """List connected peers: direct or through a relay, how far away, which node each one is."""
    found = _ask(config, sets, "GET", "/peers")
    if as_json:
        print_json(found)
        return
    rows = (
        (
            peer["peer"],
            "direct" if peer["direct"] else "relayed",
            _rtt(peer),
            str(peer["points"]),
            peer["node"] or "-",
        )
        for peer in found["peers"]
    )
    print_table(["peer", "way", "rtt ms", "faults", "node"], rows)


@app.command()
def show(peer: PeerId, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Show one connected peer: its connections and what is spoken on them."""
    found = _ask(config, sets, "GET", f"/peers/{peer}")
    if as_json:
        print_json(found)
        return
    print_text(f"{found['peer']}\nnode {found['node'] or '-'}, {found['points']} fault points of 100")
    rows = (
        (
            line["address"],
            "out" if line["outbound"] else "in",
            str(line["rtt_ms"] if line["rtt_ms"] is not None else "-"),
            ", ".join(line["protocols"]),
        )
        for line in found["connections"]
    )
    print_table(["address", "dialled", "rtt ms", "streams"], rows)


@app.command()
def ban(
    peer: PeerId,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="30m, 12h, 7d; 0s lets the peer in again.")
    ] = "1d",
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Close a peer's connections and keep it out, until the time is over or the node restarts."""
    seconds = _seconds(duration)
    found = _ask(config, sets, "POST", "/peers/ban", peer=peer, seconds=seconds)
    if as_json:
        print_json(found)
    else:
        print_text(f"{peer} is kept out for {duration}" if seconds else f"{peer} may come back")


def _ask(config: Any, sets: Any, method: str, path: str, **parameters: Any) -> Any:
    from ..api.client import ask

    return ask(load_config(config, sets).config.control_socket, method, path, **parameters)


def _rtt(peer: dict[str, Any]) -> str:
    known = [line["rtt_ms"] for line in peer["connections"] if line["rtt_ms"] is not None]
    return str(min(known)) if known else "-"


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) < 8 and unit in SECONDS):
        raise typer.BadParameter("write a time such as 30m, 12h or 7d", param_hint="--for")
    return int(number) * SECONDS[unit]
