"""Migrations: in order, each whole or not at all, after a backup, never from the future."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from openlora_node.journal import Reader
from openlora_node.journal.database import connect, create_file, ignore_step
from openlora_node.journal.schema import APPLICATION_ID, Migration, bundled, migrate
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import NOW, admit, open_journal, request, respond

NEXT = Migration(
    len(bundled()) + 1,
    "-- a comment; with a semicolon\nCREATE TABLE extra (n INTEGER); -- another\nINSERT INTO extra VALUES (1);\n",
)


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def modes(folder: Path) -> list[tuple[str, int]]:
    return [(file.name, file.stat().st_mode & 0o777) for file in folder.iterdir()]


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await respond(journal, request(1))
    return path


def test_files_are_numbered_without_a_gap_and_split_into_whole_statements() -> None:
    assert [migration.version for migration in bundled()] == list(range(1, len(bundled()) + 1))
    for migration in bundled():
        assert all(sqlite3.complete_statement(statement) for statement in migration.statements())


def test_a_statement_may_hold_a_trigger_and_must_end() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON x BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;"
    assert list(Migration(1, f"{trigger}\nSELECT 3;\n").statements()) == [trigger, "SELECT 3;"]
    assert list(Migration(1, "SELECT 1;\n-- the end\n").statements()) == ["SELECT 1;"]
    with pytest.raises(ValueError, match="inside a statement"):
        list(Migration(1, "SELECT 1;\nSELECT 2\n").statements())


async def test_a_new_journal_has_the_newest_schema_private_mode_and_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await admit(journal, request(1))
        assert {mode for _, mode in modes(tmp_path)} == {0o600}
    assert version_of(path) == len(bundled())
    assert not (tmp_path / "backups").exists()


def test_a_filled_journal_is_backed_up_before_it_is_migrated(filled: Path) -> None:
    with closing(connect(filled, "rw")) as connection:
        migrate(connection, filled, NOW, ignore_step, (*bundled(), NEXT))
        assert connection.execute("SELECT n FROM extra").fetchall() == [(1,)]
    assert version_of(filled) == NEXT.version
    (backup,) = (filled.parent / "backups").iterdir()
    assert backup.name == f"journal-schema{len(bundled())}-{NOW}.sqlite"
    assert backup.stat().st_mode & 0o777 == 0o600
    assert backup.parent.stat().st_mode & 0o777 == 0o700
    with Reader(backup) as reader:
        reader.check_integrity(deep=True)
        assert reader.summary().receipts == 1


def test_migrating_a_second_time_does_nothing(filled: Path) -> None:
    for _ in range(2):
        with closing(connect(filled, "rw")) as connection:
            migrate(connection, filled, NOW, ignore_step, (*bundled(), NEXT))
    assert len(list((filled.parent / "backups").iterdir())) == 1


def test_a_migration_that_fails_leaves_the_journal_as_it_was(filled: Path) -> None:
    broken = Migration(NEXT.version, "CREATE TABLE extra (n INTEGER);\nINSERT INTO nowhere VALUES (1);\n")
    with closing(connect(filled, "rw")) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, filled, NOW, ignore_step, (*bundled(), broken))
        assert not connection.in_transaction
    with Reader(filled) as reader:
        reader.check_integrity(deep=True)
    with closing(connect(filled, "rw")) as connection:
        migrate(connection, filled, NOW, ignore_step, (*bundled(), NEXT))


def test_a_journal_from_the_future_is_refused_untouched_naming_both_versions(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = filled.read_bytes()
    for opening in (open_journal, Reader):
        with pytest.raises(OpenLoraError) as caught:
            opening(filled)
        assert caught.value.code is ErrorCode.JOURNAL_TOO_NEW
        assert "99" in caught.value.message
        assert str(len(bundled())) in caught.value.message
    assert filled.read_bytes() == before


def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (n INTEGER)")
    with pytest.raises(OpenLoraError) as caught:
        open_journal(path)
    assert caught.value.code is ErrorCode.JOURNAL_MISMATCH
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def test_a_journal_is_marked_as_one(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    create_file(tmp_path / "journal.sqlite")
    create_file(tmp_path / "journal.sqlite")
    with closing(connect(tmp_path / "journal.sqlite", "rw")) as connection:
        migrate(connection, tmp_path / "journal.sqlite", NOW, ignore_step)
    assert version_of(tmp_path / "journal.sqlite") == len(bundled())


def test_a_half_written_backup_of_an_earlier_attempt_is_removed(filled: Path) -> None:
    backups = filled.parent / "backups"
    backups.mkdir(mode=0o700)
    (backups / f".journal-schema{len(bundled())}-1.sqlite.partial").write_bytes(b"half")
    with closing(connect(filled, "rw")) as connection:
        migrate(connection, filled, NOW, ignore_step, (*bundled(), NEXT))
    assert len(list(backups.iterdir())) == 1
