"""The read-only side: it sees the newest commit, cannot write, answers a payer's query, copies a journal in use."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_node.journal import Reader
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import admit, key_of, open_journal, request, respond, voucher

CLI = [sys.executable, "-c", "from openlora_node.cli import main; main()", "db"]


async def test_a_reader_sees_the_newest_commit_and_cannot_write(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        with Reader(journal.path) as reader:
            for running in range(3):
                assert reader.summary().running == running
                await admit(journal, request(running))
            with pytest.raises(sqlite3.OperationalError):
                reader._connection.execute("DELETE FROM requests")


async def test_open_receipts_are_those_that_no_voucher_covers_newest_first(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        stored = [await respond(journal, request(nonce), debt_allowed=10**6) for nonce in range(4)]
        with Reader(journal.path) as reader:
            assert reader.open_receipts(key_of(), 10) == stored[::-1]
            assert reader.open_receipts(key_of(), 2) == stored[:1:-1]
            await journal.advance_voucher(voucher(20, 30))
            assert reader.open_receipts(key_of(), 10) == stored[:1:-1]
            await journal.advance_voucher(voucher(40, 60))
            assert reader.open_receipts(key_of(), 10) == []


@pytest.mark.parametrize(("tokens", "compute"), [(10**6, 0), (0, 10**6)])
async def test_a_receipt_is_open_while_either_of_its_parts_is_uncovered(
    tmp_path: Path, tokens: int, compute: int
) -> None:
    """Too much of one amount covers none of the other, so every receipt stays open."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        stored = [await respond(journal, request(nonce), debt_allowed=10**6) for nonce in range(4)]
        await journal.advance_voucher(voucher(tokens, compute))
        with Reader(journal.path) as reader:
            assert reader.open_receipts(key_of(), 10) == stored[::-1]


async def test_a_backup_of_a_journal_in_use_is_whole_and_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "backups" / "copy.sqlite"
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await respond(journal, request(1))
        with Reader(journal.path) as reader:
            reader.back_up(target)
            with pytest.raises(OpenLoraError) as caught:
                reader.back_up(target)
            assert caught.value.code is ErrorCode.STORAGE_FAILED
    with Reader(target) as copy:
        copy.check_integrity(deep=True)
        assert copy.summary().receipts == 1
    assert [file.name for file in target.parent.iterdir() if "partial" in file.name] == []


def cli(*arguments: object) -> tuple[int, dict]:
    done = subprocess.run(
        [*CLI, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, json.loads(done.stdout)


async def test_the_cli_checks_and_backs_up_a_journal_in_use(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await respond(journal, request(1))
        status, checked = cli("check", "--journal", path, "--deep")
        assert (status, checked["ok"], checked["summary"]["receipts"]) == (0, True, 1)
        status, made = cli("backup", "--journal", path)
        assert status == 0
    assert cli("check", "--journal", made["backup"])[0] == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE ledgers SET tokens = 1")
    connection.close()
    status, checked = cli("check", "--journal", path)
    assert (status, checked["ok"]) == (8, False)
    assert "sum of its receipts" in checked["violations"][0]
    status, refused = cli("check", "--journal", tmp_path / "none.sqlite")
    assert (status, refused["error"]["code"]) == (8, "NOT_FOUND")
