"""Regular expressions out of adapters' configurations: matched as PEFT does, with a deadline, off the interpreter lock.

A pattern from a stranger can take exponential time in any backtracking engine. `re` would hold the interpreter lock
for all of it, so `regex` matches: it lets go of the lock and gives up at a deadline. Only what means the same to `re`,
which is what PEFT uses, is read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

import regex  # type: ignore[import-untyped]

from .problems import invalid

_T = TypeVar("_T")

MAX_PATTERN_CHARS = 4_096
MATCH_SECONDS = 0.5
"""Per adapter, all its patterns on all modules. Real ones take microseconds each."""
_FOREIGN = re.compile(r"\{(?!\d*,?\d*\})|\[\^?\[|--|&&|\|\||~~")
"""Fuzzy matches and set operations: `regex` knows them, to `re` they are plain characters."""


class Matcher:
    """Matches one adapter's patterns within one budget of time. Raises ADAPTER_INVALID beyond it, or for bad syntax."""

    def __init__(self, seconds: float = MATCH_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + seconds

    def check(self) -> None:
        """Raise if the time is up."""
        if self._clock() > self._deadline:
            raise invalid("the adapter's patterns take too long to match: write fewer, or the module names instead")

    def fullmatch(self, pattern: str, path: str) -> bool:
        """PEFT's `target_modules` and `exclude_modules` as a string: the whole path matches."""
        return self._run(_compile(pattern, pattern), "fullmatch", pattern, path) is not None

    def ends_with(self, pattern: str, path: str) -> bool:
        """PEFT's keys of `rank_pattern` and `alpha_pattern`: the pattern matches the path or its last components."""
        return self._run(_compile(rf"(.*\.)?({pattern})$", pattern), "match", pattern, path) is not None

    def layer_index(self, pattern: str | None, path: str) -> int | None:
        """The first number in the path that stands after `pattern`; None of PEFT's means any component."""
        full = rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." if pattern is not None else r".*?\.[^.]*\.(?P<idx>\d+)\."
        found = self._run(_compile(full, pattern or ""), "match", pattern or "", path)
        return None if found is None else int(found["idx"])

    def _run(self, compiled: Any, method: str, pattern: str, path: str) -> Any:
        self.check()
        left = max(self._deadline - self._clock(), 1e-6)
        try:
            return getattr(compiled, method)(path, timeout=left, concurrent=True)
        except TimeoutError:
            raise invalid(f"pattern {pattern[:80]!r} takes too long to match: write the module names instead") from None


class PatternTable(Generic[_T]):
    """Values by pattern, in order; the first pattern that matches a path's end counts.

    Most patterns are module names. They are sorted by length, since only those as long as one of the path's ends can
    match: an adapter with a rank for each of its modules needs no quadratic time.
    """

    def __init__(self, items: Sequence[tuple[str, _T]]) -> None:
        self._names: dict[int, list[tuple[int, str, _T]]] = {}
        self._patterns: list[tuple[int, str, _T]] = []
        for order, (pattern, value) in enumerate(items):
            rows = self._names.setdefault(len(pattern), []) if is_name(pattern) else self._patterns
            rows.append((order, pattern, value))

    def first(self, path: str, matcher: Matcher) -> _T | None:
        """The value of the first pattern that matches, None where none does."""
        if not self._names and not self._patterns:
            return None
        best: tuple[int, _T] | None = None
        for end in ends_of(path):
            for order, name, value in self._names.get(len(end), ()):
                if (best is None or order < best[0]) and _same(name, end):
                    best = order, value
            matcher.check()
        for order, pattern, value in self._patterns:
            if best is not None and best[0] < order:
                break
            if matcher.ends_with(pattern, path):
                return value
        return None if best is None else best[1]


@lru_cache(maxsize=8_192)
def ends_of(path: str) -> tuple[str, ...]:
    """The path and what is left of it when components go from the front: "a.b.c", "b.c", "c"."""
    parts = path.split(".")
    return tuple(".".join(parts[start:]) for start in range(len(parts)))


def is_name(pattern: str) -> bool:
    """Whether a pattern is a module name: letters, digits, underscores and dots, which match any character."""
    return pattern.isascii() and pattern.replace(".", "").replace("_", "").isalnum()


def _same(name: str, end: str) -> bool:
    return name == end or all(wanted in (given, ".") for wanted, given in zip(name, end, strict=True))


@lru_cache(maxsize=256)
def _compile(full: str, pattern: str) -> Any:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise invalid(f"a pattern of {len(pattern):,} characters; at most {MAX_PATTERN_CHARS:,} are read")
    if _FOREIGN.search(pattern):
        raise invalid(f"pattern {pattern[:80]!r} means different things to different engines: write the module names")
    try:
        re.compile(full)
        return regex.compile(full)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError):
        raise invalid(f"pattern {pattern[:80]!r} is not a regular expression") from None
