"""What is wrong with a configuration: every problem at once, each with its place, its key and the fix.

No message holds a value: what was written in the wrong place may be a secret. Names of keys are shown only when they
are short, printable and no secret themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..protocol.errors import ErrorCode, OpenLoraError
from .leaks import secret_in

MAX_SHOWN = 50
MAX_NAME = 300


@dataclass(frozen=True)
class Problem:
    """One thing to correct: `place` is `file:line`, a variable or a flag; `key` is `section.key` or empty."""

    place: str
    key: str
    message: str
    code: ErrorCode = ErrorCode.CONFIG_INVALID

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


class ConfigError(OpenLoraError):
    """A configuration that cannot be used. `problems` is never empty; the message has one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if hidden := len(self.problems) - len(lines):
            lines.append(f"and {hidden} more: correct these first")
        secret = any(problem.code is ErrorCode.CONFIG_SECRET for problem in self.problems)
        super().__init__(ErrorCode.CONFIG_SECRET if secret else ErrorCode.CONFIG_INVALID, "\n".join(lines))


def shown(name: str) -> str:
    """A name as it may stand in a message: a key, a variable or a file that someone typed."""
    if secret_in(name) or len(name) > MAX_NAME:
        return "(name withheld)"
    return name if name.isprintable() and name else ascii(name)


def did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """A question that names the closest of `known` by its full name, or nothing."""
    close = difflib.get_close_matches(name[:MAX_NAME], list(known), n=1, cutoff=0.6)
    return f"did you mean {known[close[0]]}?" if close else ""
