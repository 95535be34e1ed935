"""The journal's schema: numbered SQL files applied in order, each in one transaction, after a backup.

`PRAGMA user_version` counts the files applied; `PRAGMA application_id` tells a journal from any other database.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from ..protocol.errors import ErrorCode, OpenLoraError
from .backup import back_up
from .database import OnStep, scalar

APPLICATION_ID = 0x4F4C6F52
"""'OLoR'."""
BACKUPS = "backups"

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql", re.ASCII)


@dataclass(frozen=True)
class Migration:
    """One numbered file: brings a journal from version - 1 to version."""

    version: int
    sql: str

    def statements(self) -> Iterator[str]:
        """The file's statements, one at a time: `executescript` would commit between them."""
        pending = ""
        for line in self.sql.splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                yield pending.strip()
                pending = ""
        if re.sub(r"--[^\n]*", "", pending).strip():
            raise ValueError(f"migration {self.version} ends inside a statement")


@cache
def bundled() -> tuple[Migration, ...]:
    """The migrations that ship with this version, 1 to n without a gap."""
    files = [
        (_NAME.fullmatch(entry.name), entry) for entry in resources.files(__package__).joinpath("migrations").iterdir()
    ]
    found = sorted(
        (Migration(int(match[1]), entry.read_text("utf-8")) for match, entry in files if match),
        key=lambda migration: migration.version,
    )
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are numbered 1 to n, each once")
    return tuple(found)


def check_version(connection: sqlite3.Connection, newest: int) -> int:
    """The schema version of a journal. Raises JOURNAL_TOO_NEW, or JOURNAL_MISMATCH for another program's database."""
    version = int(scalar(connection, "PRAGMA user_version"))
    application = scalar(connection, "PRAGMA application_id")
    empty = scalar(connection, "SELECT count(*) FROM sqlite_schema") == 0
    if application != APPLICATION_ID and not (empty and application == 0 and version == 0):
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "this database is not a journal of OpenLoRA Node")
    if version > newest:
        raise OpenLoraError(
            ErrorCode.JOURNAL_TOO_NEW,
            f"the journal has schema {version}, this version reads up to {newest}: run the version that wrote it",
        )
    return version


def migrate(
    connection: sqlite3.Connection, path: Path, now: int, on_step: OnStep, migrations: Sequence[Migration] = ()
) -> None:
    """Bring the journal at `path` to the newest of `migrations` (default: those bundled)."""
    migrations = migrations or bundled()
    version = check_version(connection, migrations[-1].version)
    pending = [migration for migration in migrations if migration.version > version]
    if pending and version > 0:
        _back_up_before(connection, path, version, now)
    for migration in pending:
        _apply(connection, migration, on_step)


def _back_up_before(connection: sqlite3.Connection, path: Path, version: int, now: int) -> None:
    folder, prefix = path.parent / BACKUPS, f"{path.stem}-schema{version}-"
    for abandoned in folder.glob(f".{prefix}*.partial"):
        abandoned.unlink()
    target = folder / f"{prefix}{now}.sqlite"
    # A migration that died within this second left the same backup: nothing writes between it and the migration.
    if not target.exists():
        back_up(connection, target)


def _apply(connection: sqlite3.Connection, migration: Migration, on_step: OnStep) -> None:
    step = f"migrate.{migration.version:04}"
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number, statement in enumerate(migration.statements(), 1):
            on_step(f"{step}.{number}")
            connection.execute(statement)
        on_step(f"{step}.version")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {migration.version}")
        on_step(f"{step}.commit")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    on_step(f"{step}.committed")
