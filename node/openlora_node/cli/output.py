"""Printing: tables for people, JSON for programs, errors as single lines. Knows no command.

Results go to standard output. So does an error under `--json`, as {"error": {"code", "message", "problems"?}};
otherwise errors go to standard error. rich honours NO_COLOR; without a terminal nothing is wrapped or cut.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence

from ..protocol.errors import ErrorCode, OpenLoraError

PIPE_WIDTH = 10_000


class ReaderLeftError(Exception):
    """Whoever read standard output has closed it, as `| head` does: no error, nothing more to say."""


class OutputLostError(Exception):
    """Standard output takes no more: the disk below it is full or failing."""


def print_text(text: str) -> None:
    """A result as it stands. Raises ReaderLeftError when the reader has left, OutputLostError when the disk is full."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise ReaderLeftError from None
    except OSError:
        raise OutputLostError from None


def print_json(value: object) -> None:
    """One JSON document, ASCII only, so that no terminal or encoding changes it."""
    print_text(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose cells are shown as they stand: no markup, no emoji."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Drawn in memory and printed by us: rich would exit on its own when the reader has left.
    drawn, terminal = io.StringIO(), sys.stdout.isatty()
    console = Console(file=drawn, force_terminal=terminal, width=None if terminal else PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    print_text("\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))


def print_error(error: OpenLoraError, *, as_json: bool) -> None:
    """An error of ours: a line for each problem, or one JSON document."""
    problems = getattr(error, "problems", ())
    if as_json:
        body: dict[str, object] = {"code": error.code.value, "message": error.message}
        if problems:
            body["message"] = str(problems[0]) + (f" (and {len(problems) - 1} more)" if problems[1:] else "")
            body["problems"] = [
                {"place": problem.place, "key": problem.key, "code": problem.code.value, "message": problem.message}
                for problem in problems
            ]
        print_json({"error": body})
        return
    for line in error.message.splitlines():
        print(f"openlora: {line}", file=sys.stderr)


def print_usage_error(message: str, hint: str, *, as_json: bool) -> None:
    """A command line that cannot be understood. USAGE is the command line's own code: it never travels."""
    if as_json:
        print_json({"error": {"code": "USAGE", "message": f"{message} {hint}"}})
    else:
        print(f"openlora: {message} {hint}", file=sys.stderr)


def print_fault(kind: str, *, as_json: bool) -> None:
    """A fault of ours: its class and how to see the rest, never its text."""
    message = f"{kind}: a fault of ours; run again with PYTHONDEVMODE=1 for the traceback, then report it"
    print_error(OpenLoraError(ErrorCode.INTERNAL, message), as_json=as_json)
