"""`openlora net`: how others reach this node, and what to do where they do not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

app = typer.Typer(help="See how others reach this node, and what to change.", no_args_is_help=True, **NOUN)

WORDS = {
    "direct": "direct: peers reach this node at its own address",
    "relayed": "relayed: peers reach this node through relays only",
    "unknown": "unknown: nobody has reached this node yet",
}


@app.command()
def reach(
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=1, max=600, help="Longest wait where no node runs.")
    ] = 30.0,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> int:
    """Say whether peers reach this node, who tried, and what to change.

    Asks the running node; where none runs, listens for a moment in its place and asks peers itself. Exit code 6 when
    nobody reaches it.
    """
    report = _reach(config, sets, wait)
    if as_json:
        print_json(report)
    else:
        _print_reach(report)
    return Exit.NETWORK if report["reach"] == "unknown" else Exit.OK


@app.command()
def addrs(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """List where the running node listens, what peers see, and what others are told."""
    from ..api.client import ask

    report = ask(load_config(config, sets).config.control_socket, "GET", "/net/addrs")
    if as_json:
        print_json(report)
    else:
        rows = [(kind, address) for kind in ("listen", "observed", "told") for address in report[kind]]
        print_table(["", "address"], rows)


def _reach(config: Any, sets: Any, wait: float) -> dict[str, Any]:
    from ..api.client import ask

    loaded = load_config(config, sets).config
    try:
        report = ask(loaded.control_socket, "GET", "/net/reach")
    except OpenLoraError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
    else:
        return {**report, "running": True}
    from ..network.reach_probe import probe

    network, peers = loaded.network, loaded.state_dir / "peers.json"
    found = probe(
        network.listen,
        network.announce,
        network.bootstrap,
        peers if peers.exists() else None,
        relay=network.relay,
        patience_s=wait,
    )
    return {**found, "running": False}


def _print_reach(report: dict[str, Any]) -> None:
    if not report["running"]:
        print_text("No node runs here: peers were asked in its place.")
    print_text(WORDS[report["reach"]])
    dial_backs = report.get("dial_backs", {})
    if dial_backs.get("peers"):
        asked = f"{dial_backs['reached']} of {dial_backs['counted']} peers could dial back"
        few = dial_backs["counted"] < dial_backs["wanted"]
        ago = max(0, int(time.time()) - report["checked_at"])
        weak = f", fewer than the {dial_backs['wanted']} that make it certain" if few else ""
        print_text(f"{asked}{weak} ({ago} s ago)")
        rows = (
            (vote["answer"], vote["peer"], vote["ip"], vote["observed"] or "-", vote["address"] or vote["reason"])
            for vote in dial_backs["peers"]
        )
        print_table(["answer", "peer", "its IP", "sees us at", "reached"], rows)
    for title, values in (("told to others", report.get("told", ())), ("relays", report.get("relays", ()))):
        _print_list(title, values)
    _print_list("to do", report["fix"])


def _print_list(title: str, values: Iterable[str]) -> None:
    for value in values:
        print_text(f"{title}: {value}")
