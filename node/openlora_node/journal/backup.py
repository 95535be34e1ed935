"""A consistent copy of a journal, made while it is in use. A copy appears under its name only when it is whole."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ..protocol.errors import ErrorCode, OpenLoraError
from .database import create_file, scalar


def back_up(source: sqlite3.Connection, target: Path) -> None:
    """Copy the database behind `source` to `target` (mode 0600; its directory is made 0700). Never replaces a file.

    Raises sqlite3.Error or OSError as they come, and JOURNAL_CORRUPT when the copy fails SQLite's quick check.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target.exists():
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, "a file of that name exists: a backup replaces none")
    partial = partial_of(target)
    try:
        create_file(partial)
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            source.backup(copy)
            # Out of WAL mode, so that the copy is one file that nothing needs beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            if scalar(copy, "PRAGMA quick_check") != "ok":
                raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT)
        _sync(partial)
        partial.rename(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(target: Path) -> Path:
    """Where a copy grows before it gets its name. A killed process may leave one behind."""
    return target.with_name(f".{target.name}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
