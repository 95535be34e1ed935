"""`openlora engine`: the inference engine by itself. Hands its arguments on and becomes it; imports none of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from .options import NOUN
from .output import print_text

HELP = "Serve LoRA adapters over one base model, without a node."


def command(arguments: Sequence[str]) -> list[str]:
    """The engine's command line. -P: nothing that lies in the current folder is imported in its place."""
    return [sys.executable, "-P", "-m", "openlora_engine", *arguments]


class Engine(TyperGroup):
    """A command whose options are the engine's own: parsed there, explained there."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep everything as it came, `--help` and `--json` included."""
        ctx.args = list(args)
        return []

    def invoke(self, ctx: Any) -> int:
        """Become the engine: signals and the exit code are its own from here on."""
        return _explain() if {"-h", "--help"} & set(ctx.args) else _become(ctx.args)


def _become(arguments: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    line = command(arguments)
    os.execv(line[0], line)  # noqa: S606 -- the arguments are the caller's own, no shell reads them


app = typer.Typer(cls=Engine, help=HELP, **NOUN)


@app.callback()
def engine() -> None:
    """Serve LoRA adapters over one base model, without a node."""


def _explain() -> int:
    """The engine's help below our line. Its failure, if any, is on standard error."""
    told = subprocess.run(command(["--help"]), stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    print_text(f"{HELP}\n\n{told.stdout}".rstrip())
    return told.returncode
