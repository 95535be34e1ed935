"""`openlora db`: look after the journal. Reads only; works beside a running daemon."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..protocol.errors import ErrorCode
from .exits import exit_for
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table

app = typer.Typer(help="Check and back up the journal.", no_args_is_help=True, **NOUN)

JournalFile = Annotated[
    Path | None, typer.Option("--journal", metavar="FILE", help="The journal. Default: that of the configured node.")
]


@app.command()
def check(
    journal: JournalFile = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every page, recompute every digest and signer.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> int:
    """Check that the journal is whole: what is wrong and where, or how much it holds."""
    from ..journal import Reader

    with Reader(_path(journal, config, sets)) as reader:
        found = reader.violations(deep)
        summary = {} if found else asdict(reader.summary())
    if as_json:
        print_json({"ok": not found, "violations": found, "summary": summary})
    elif found:
        print_table(["violation"], [[finding] for finding in found])
    else:
        print_table(list(summary), [[str(value) for value in summary.values()]])
    return exit_for(ErrorCode.JOURNAL_CORRUPT) if found else 0


@app.command()
def backup(
    target: Annotated[Path | None, typer.Argument(help="The copy. Default: a new one in backups/ beside it.")] = None,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Copy the journal while it is in use. Replaces no file."""
    from ..journal import Reader

    path = _path(journal, config, sets)
    with Reader(path) as reader:
        copy = target or path.parent / "backups" / f"{path.stem}-{time.time_ns()}{path.suffix}"
        reader.back_up(copy)
    if as_json:
        print_json({"backup": str(copy)})
    else:
        print(copy)


def _path(journal: Path | None, config: Path | None, sets: list[str] | None) -> Path:
    from ..datadir import JOURNAL_NAME

    return journal or load_config(config, sets).config.state_dir / JOURNAL_NAME
