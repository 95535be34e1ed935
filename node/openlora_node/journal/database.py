"""SQLite as the journal uses it: how a file is opened, and which of its errors mean what. Knows no table.

Error messages name the file's base name at most: they may be shown to the other side.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ..protocol.errors import ErrorCode, OpenLoraError

BUSY_TIMEOUT_S = 5.0
WAL_CHECKPOINT_PAGES = 4_000
WAL_SIZE_LIMIT = 64 << 20

OnStep = Callable[[str], None]
"""Called with a name before every write statement, before every COMMIT and after it: where a process may die."""

_STORAGE_CODES = {
    sqlite3.SQLITE_FULL: ErrorCode.STORAGE_FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: ErrorCode.STORAGE_FULL,
    sqlite3.SQLITE_READONLY: ErrorCode.STORAGE_READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: ErrorCode.STORAGE_READ_ONLY,
    sqlite3.SQLITE_PERM: ErrorCode.STORAGE_READ_ONLY,
    sqlite3.SQLITE_CORRUPT: ErrorCode.JOURNAL_CORRUPT,
    sqlite3.SQLITE_NOTADB: ErrorCode.JOURNAL_CORRUPT,
}
_ERRNO_CODES = {
    errno.ENOSPC: ErrorCode.STORAGE_FULL,
    errno.EDQUOT: ErrorCode.STORAGE_FULL,
    errno.EROFS: ErrorCode.STORAGE_READ_ONLY,
    errno.EACCES: ErrorCode.STORAGE_READ_ONLY,
    errno.EPERM: ErrorCode.STORAGE_READ_ONLY,
    errno.ENOENT: ErrorCode.NOT_FOUND,
}


def ignore_step(_name: str) -> None:
    """The default `OnStep`."""


def storage_error(error: sqlite3.Error | OSError) -> OpenLoraError:
    """The error of ours that an error of the disk or of SQLite stands for."""
    if isinstance(error, OSError):
        return OpenLoraError(_ERRNO_CODES.get(error.errno or 0, ErrorCode.STORAGE_FAILED))
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return OpenLoraError(_STORAGE_CODES.get(extended) or _STORAGE_CODES.get(extended & 0xFF, ErrorCode.STORAGE_FAILED))


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate what SQLite and the operating system raise in this block."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error) from error


def create_file(path: Path) -> None:
    """Make an empty file of mode 0600 unless it exists; SQLite gives the same mode to what it puts beside it."""
    # An existing file is not opened: closing a descriptor would drop the locks that this process holds on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def connect(path: Path, mode: Literal["rw", "ro"]) -> sqlite3.Connection:
    """Open an existing database. Transactions are explicit; the connection may move between threads, one at a time."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rw":
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def scalar(connection: sqlite3.Connection, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
    """The first column of the first row."""
    row = connection.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


class Transaction:
    """What an operation sees of the open transaction: reads, and writes that carry a step name."""

    __slots__ = ("_connection", "_on_step")

    def __init__(self, connection: sqlite3.Connection, on_step: OnStep = ignore_step) -> None:
        self._connection = connection
        self._on_step = on_step

    def one(self, sql: str, *parameters: Any) -> Any:
        """The first row, or None."""
        return self._connection.execute(sql, parameters).fetchone()

    def all(self, sql: str, *parameters: Any) -> list[Any]:
        """Every row. The statement bounds how many."""
        return self._connection.execute(sql, parameters).fetchall()

    def write(self, step: str, sql: str, *parameters: Any) -> int:
        """Run one write statement; returns how many rows it changed."""
        self._on_step(step)
        return self._connection.execute(sql, parameters).rowcount
