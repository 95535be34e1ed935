"""`openlora status`: serving or why not, on one screen; also when the node does not run."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from ..config.schema import Config

app = typer.Typer(help="Tell whether the node serves, or why not.", invoke_without_command=True, **NOUN)
MARKS = {"up": "ok", "degraded": "!", "initializing": "…", "down": "✗"}
WEI = 10**18


@app.callback()
def status(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> int:
    """Tell whether the node serves, or why not. Returns 0 when it serves, 8 when it does not."""
    from ..api.client import ask

    loaded = load_config(config, sets)
    try:
        found = ask(loaded.config.control_socket, "GET", "/status")
    except OpenLoraError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
        found = _offline(loaded.config)
    if as_json:
        print_json(found)
    elif found["pid"] is None:
        _print_offline(found)
    else:
        _print(found)
    return Exit.OK if found["ready"] else Exit.REFUSED


def _offline(config: Config) -> dict[str, Any]:
    """What the disk alone tells of a node that does not run."""
    from ..daemon.checkup import lock_holder
    from ..daemon.keys import node_address
    from ..datadir import JOURNAL_NAME
    from ..journal import Reader
    from ..protocol.ids import format_address, format_bytes

    address = node_address(config, os.environ)
    holder = lock_holder(config)
    found: dict[str, Any] = {
        "ready": False, "pid": None, "network": config.node.network, "stateDir": str(config.state_dir),
        "summary": "not running: start it with `openlora run`, or systemctl start openlora-node",
        "key": format_address(address) if address else None, "node": None, "journal": None,
    }  # fmt: skip
    if holder:
        found["summary"] = f"process {holder} holds the state and does not answer: it is starting, stopping, or hangs"
    elif address is None:
        found["summary"] = "not set up: run `openlora init`"
    try:
        with Reader(config.state_dir / JOURNAL_NAME) as reader:
            summary = reader.summary()
            found["node"] = format_bytes(reader.binding.owner)
            found["journal"] = {
                "receipts": summary.receipts, "running": summary.running, "interrupted": summary.interrupted,
                "ledgers": summary.ledgers, "schema": summary.schema, "newestSeq": summary.newest_seq,
            }  # fmt: skip
    except OpenLoraError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            found["summary"] += f"; its journal: {error.message}"
    return found


def _print_offline(found: dict[str, Any]) -> None:
    print_text(found["summary"])
    rows = [("state", found["stateDir"]), ("network", found["network"]), ("key", found["key"] or "none")]
    if found["node"]:
        rows.append(("node", found["node"]))
    if found["journal"]:
        rows.append(("receipts", str(found["journal"]["receipts"])))
    print_table(("", ""), rows)


def _print(found: dict[str, Any]) -> None:
    up_for = _span(int(time.time()) - found["startedAt"])
    print_text(f"{found['summary']}")
    print_text(f"{found['network']}, up for {up_for}, process {found['pid']}, version {found['version']}\n")
    rows = [
        (MARKS.get(service["level"], "?"), service["name"], service["level"],
         _span(int(time.time()) - service["since"]), service["reason"])
        for service in found["services"]
    ]  # fmt: skip
    print_table(("", "service", "state", "for", "why"), rows)
    print_text("")
    print_table(("", ""), list(_facts(found)))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("node", found["node"] or "not registered yet"), ("key", found["key"])]
    rows += [("base model", base) for base in dict.fromkeys(engine["base"] for engine in found["engines"]) if base]
    rows += [_engine(engine, alone=len(found["engines"]) == 1) for engine in found["engines"]]
    serving, outbox = found["serving"], found["outbox"]
    rows.append(("peers", "-" if found["peers"] is None else str(found["peers"])))
    if serving:
        rows.append(
            ("requests", f"{serving['queue']} waiting, {serving['running']} running, {serving['closing']} closing")
        )
        rows.append(("since start", f"{serving['responses']} receipts, {serving['refused']} refused"))
        rows.append(("speed", f"{serving['tokensPerSecond']:.0f} tokens/s"))
    if found["journal"]:
        rows.append(("receipts", f"{found['journal']['receipts']} in all"))
    if outbox:
        rows.append(("transactions", f"{outbox['queued']} queued, {outbox['inFlight']} in flight"
                                     + (f": {outbox['blocked']}" if outbox["blocked"] else "")))  # fmt: skip
    settlement = found["settlement"]
    if settlement and settlement["lastRound"]:
        rows.append(("due", f"{_open(settlement['due'])} in {settlement['dueLedgers']} ledgers"))
        rows.append(("earned", f"{_open(settlement['operatorBalance'])} to claim"))
        rows.append(("gas", f"{_open(settlement['gasBalance'])}, about {settlement['gasTransactions']} transactions"))
    return rows


def _engine(engine: dict[str, Any], *, alone: bool) -> tuple[str, str]:
    """One engine in a line; by its name where it is one of several."""
    name = "engine" if alone else f"engine {engine['name']}"
    if not engine["model"]:
        return name, ": ".join(filter(None, (engine["level"], engine["reason"])))
    where = f"{engine['model']} on {engine['device'] or '?'}, {engine['maxModelLen']} tokens"
    return name, where if alone else f"{where}, {engine['running']} running"


def _open(wei: str | int) -> str:
    return f"{int(wei) / WEI:.6f} OPEN"


def _span(seconds: int) -> str:
    """About how long: `3 s`, `12 min`, `5 h`, `9 d`."""
    seconds = max(0, seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
