"""Every invariant, broken by hand, is found and named; files that are no journal are refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from openlora_node.journal import Reader
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import admit, open_journal, request, respond, voucher

TAMPERINGS = {
    "UPDATE receipts SET previous = zeroblob(32) WHERE seq = (SELECT max(seq) FROM receipts)": "receipt before",
    "UPDATE requests SET state = 'interrupted' WHERE state = 'done'": "its request is interrupted",
    "UPDATE requests SET state = 'done' WHERE state = 'running'": "done without a receipt",
    "UPDATE ledgers SET tokens = tokens + 1": "differ from the sum of its receipts",
    "UPDATE ledgers SET fee = zeroblob(16)": "differ from the sum of its receipts",
    "UPDATE ledgers SET reserved = zeroblob(16)": "its reservation differs",
    "UPDATE ledgers SET voucher = NULL": "value without a voucher",
    "UPDATE ledgers SET voucher = x'00'": "does not decode",
    "UPDATE ledgers SET voucher_value = zeroblob(16)": "worth more than stored",
    "UPDATE accounts SET owed = randomblob(32)": "differs from the sum over its ledgers",
    "UPDATE requests SET expires_at = expires_at + 1": "columns differ from its signed bytes",
    "UPDATE requests SET signed = x'00'": "cut short",
    "UPDATE receipts SET royalties = x'00000000000000000000000000000001'": "columns differ from its signed bytes",
    "UPDATE requests SET digest = randomblob(32) WHERE state = 'done'": "is missing",
}


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await respond(journal, request(1))
        await respond(journal, request(2), debt_allowed=35)
        await journal.advance_voucher(voucher(20, 30))
        await admit(journal, request(3))
    return path


def test_an_untouched_journal_is_whole(filled: Path) -> None:
    with Reader(filled) as reader:
        assert reader.violations() == reader.violations(deep=True) == []


@pytest.mark.parametrize(("sql", "finding"), TAMPERINGS.items(), ids=lambda text: text[:48])
def test_what_was_tampered_with_is_found(filled: Path, sql: str, finding: str) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        assert connection.execute(sql).rowcount
        connection.commit()
    with Reader(filled) as reader:
        assert any(finding in one for one in reader.violations()), reader.violations()
        with pytest.raises(OpenLoraError) as caught:
            reader.check_integrity()
    assert caught.value.code is ErrorCode.JOURNAL_CORRUPT


@pytest.mark.parametrize("table", ["requests", "ledgers"])
def test_a_deep_check_finds_a_signer_that_did_not_sign(filled: Path, table: str) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        for each in ("ledgers", "requests", "receipts"):
            connection.execute(f"UPDATE {each} SET signer = zeroblob(20)")
        connection.commit()
    with Reader(filled) as reader:
        assert reader.violations() == []
        wanted = "signed by another key" if table == "ledgers" else "request"
        assert any(wanted in one for one in reader.violations(deep=True))


@pytest.mark.parametrize(
    "content", [b"garbage" * 1_000, b"SQLite format 3\0" + b"\xff" * 5_000], ids=["text", "header"]
)
def test_a_file_of_garbage_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    for opening in (open_journal, Reader):
        with pytest.raises(OpenLoraError) as caught:
            opening(path)
        assert caught.value.code is ErrorCode.JOURNAL_CORRUPT
    assert path.read_bytes() == content


def test_a_missing_journal_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(OpenLoraError) as caught:
        Reader(tmp_path / "journal.sqlite")
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert list(tmp_path.iterdir()) == []


async def test_a_log_cut_short_anywhere_leaves_whole_commits(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        for nonce in range(4):
            await respond(journal, request(nonce), debt_allowed=10**6)
        data, log = path.read_bytes(), path.with_name("journal.sqlite-wal").read_bytes()
    counts = set()
    for cut in range(len(log), 4_096 * 24, -5_001):
        copy = tmp_path / f"cut{cut}.sqlite"
        copy.write_bytes(data)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:cut])
        try:
            async with open_journal(copy) as journal:
                await journal.check_integrity(deep=True)
            with Reader(copy) as reader:
                counts.add(reader.summary().receipts)
        except OpenLoraError as error:
            pytest.fail(str(error))
    assert max(counts) == 4
    assert len(counts) > 1
