"""`openlora spend`: what the gateway spent, from its journal; works beside a running gateway and without one."""

from __future__ import annotations

import csv
import io
import time
from typing import Annotated, Any

import typer

from .ask import coins
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

app = typer.Typer(help="See what the gateway spent.", no_args_is_help=True, **NOUN)

COLUMNS = ("at", "state", "model", "node", "wei", "compute", "royalties", "promptTokens", "completionTokens", "receipt")
MAX_ROWS = 10_000


@app.callback()
def spend() -> None:
    """See what the gateway spent."""


@app.command()
def show(
    days: Annotated[int, typer.Option("--days", min=1, max=3_650, help="How far back.")] = 30,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_ROWS, help="Most requests listed.")] = 50,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print what was spent: what is left of the caps, and the newest requests with their fees."""
    from ..datadir import PAYER_JOURNAL_NAME
    from ..gateway import history
    from ..journal import Reader

    gateway = (loaded := load_config(config, sets)).config.gateway
    now = int(time.time())
    with Reader(loaded.config.gateway_dir / PAYER_JOURNAL_NAME) as reader:
        domain = reader.binding.domain
        told = reader.read(
            lambda tx: {
                **history.summary(tx, now, gateway.spend_per_request, gateway.spend_per_day),
                "requests": history.rows(tx, domain, now - days * 86_400, limit),
            }
        )
    if as_json:
        print_json(told)
    elif as_csv:
        print_text(_csv(told["requests"]))
    else:
        _print(told)


def _csv(requests: list[dict[str, Any]]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    # A model's name is text of ours, but a spreadsheet must not take it for a formula.
    writer.writerows({**row, "model": row["model"].lstrip("=+-@\t")} for row in requests)
    return written.getvalue().rstrip("\n")


def _print(told: dict[str, Any]) -> None:
    print_text(
        f"{coins(told['spentLast24h'])} in the last 24 hours, {coins(told['leftOfDay'])} left of the day,"
        f" {coins(told['perRequest'])} a request at most"
    )
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["at"])),
            row["state"],
            row["model"],
            f"{row['promptTokens']}+{row['completionTokens'] or 0}",
            coins(row["wei"]),
            (row["receipt"] or row["note"] or "")[:66],
        )
        for row in told["requests"]
    ]
    print_table(("time (UTC)", "state", "model", "tokens", "counts as", "receipt, or why there is none"), rows)
