"""SIGKILL before every write, before and after every COMMIT: what was acknowledged is there, nothing is doubled."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from openlora_node.journal import Reader
from openlora_node.journal.schema import bundled
from openlora_node.protocol.errors import OpenLoraError
from support.journal import NODE, digest_of, key_of, request

WORKLOAD = Path(__file__).with_name("workload.py")
MIGRATION = Path(__file__).with_name("migration.py")
TESTS = Path(__file__).parents[2]
RECEIPTS = 3


def run(path: Path, step: int) -> tuple[bool, list[str]]:
    """Whether the workload came to its end, and what it acknowledged."""
    done = subprocess.run(
        [sys.executable, WORKLOAD, path, str(step)],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0, done.stdout.splitlines()


def check_acknowledged(path: Path, acknowledged: list[str]) -> None:
    """Everything acknowledged is in the journal, which is whole."""
    if not acknowledged:
        return
    with Reader(path) as reader:
        reader.check_integrity(deep=True)
        ledger, receipts = reader.ledger(key_of()), reader.receipts(NODE, 0, 100)
        assert len(receipts) == len({one.receipt.value.request_digest for one in receipts})
        assert ledger.fee == 35 * len(receipts)
        for line in acknowledged:
            what, _, number = line.partition(" ")
            if what == "receipt":
                assert reader.receipt(digest_of(request(int(number)))) is not None
            elif what == "admitted" and number != "99":
                assert reader.request_state(digest_of(request(int(number)))) is not None
            elif what == "voucher":
                assert ledger.voucher_value == 35 * RECEIPTS
            elif what == "redeemed":
                assert ledger.redeemed == 35 * RECEIPTS
            elif what == "pruned":
                assert reader.request_state(digest_of(request(99))) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_every_step_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    for step in range(1, 200):
        path = tmp_path / f"{step}.sqlite"
        survived, acknowledged = run(path, step)
        check_acknowledged(path, acknowledged)
        finished, rest = run(path, 0)
        assert finished
        assert rest[-1] == "pruned"
        check_acknowledged(path, rest)
        with Reader(path) as reader:
            summary = reader.summary()
            assert (summary.receipts, summary.running, summary.interrupted) == (RECEIPTS, 0, 0)
        if survived:
            break
    else:
        pytest.fail("the workload never survived")
    assert step > 30, "the walk passed every write of the workload"


def test_a_killed_first_opening_is_refused_by_a_reader_or_whole(tmp_path: Path) -> None:
    """Dying inside the first migration leaves no half schema, and the next start works."""
    path = tmp_path / "journal.sqlite"
    run(path, 2)
    with pytest.raises(OpenLoraError):
        Reader(path)
    assert run(path, 0)[0]


def migrate_dying_at(path: Path, step: int) -> bool:
    """Whether the migration came to its end."""
    done = subprocess.run(
        [sys.executable, MIGRATION, path, str(step)],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


@pytest.mark.slow
def test_killed_while_a_filled_journal_migrates_it_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    filled = tmp_path / "filled.sqlite"
    assert run(filled, 0)[0]
    versions = set()
    for step in range(1, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        path = folder / "journal.sqlite"
        shutil.copy(filled, path)
        survived = migrate_dying_at(path, step)
        with closing(sqlite3.connect(path)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
            assert connection.execute("SELECT count(*) FROM receipts").fetchone()[0] == RECEIPTS
        assert ("extra" in tables) == (version == len(bundled()) + 1)
        versions.add(version)
        (backup,) = (folder / "backups").iterdir()
        with Reader(backup) as reader:
            reader.check_integrity(deep=True)
            assert reader.summary().receipts == RECEIPTS
        assert migrate_dying_at(path, 0)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM receipts WHERE note = 'migrated'").fetchone()[0] == RECEIPTS
            assert connection.execute("SELECT count(*) FROM extra").fetchone()[0] == RECEIPTS
        if survived:
            break
    else:
        pytest.fail("the migration never survived")
    assert versions == {len(bundled()), len(bundled()) + 1}
