"""The writer: groups commit together, a failure stays its own, nothing is done before it is on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest

from openlora_node.journal import Admitted, Reader, RequestState
from openlora_node.journal.database import connect, create_file
from openlora_node.journal.writer import MAX_GROUP, Writer
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import Clock, admit, digest_of, key_of, open_journal, request, voucher


class Gate:
    """Steps of the journal, and a place where the writer stops until it is let on."""

    def __init__(self, at: str = "") -> None:
        self.steps: list[str] = []
        self.at = at
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, step: str) -> None:
        self.steps.append(step)
        if step == self.at:
            self.reached.set()
            assert self.open.wait(30)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 30)


class Saboteur:
    """Cancels a task before its `number`-th step, as seen from the writer's thread."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.task: asyncio.Task | None = None
        self.loop = asyncio.get_running_loop()

    def __call__(self, _step: str) -> None:
        if self.task is not None:
            self.left -= 1
            if self.left == 0:
                self.loop.call_soon_threadsafe(self.task.cancel)


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    create_file(tmp_path / "plain.sqlite")
    connection = connect(tmp_path / "plain.sqlite", "rw")
    connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
    return connection


def insert(number: int):
    return lambda tx: tx.write("insert", "INSERT INTO numbers VALUES (?)", number)


def numbers(path: Path) -> list[int]:
    with sqlite3.connect(path) as other:
        found = [n for (n,) in other.execute("SELECT n FROM numbers ORDER BY n")]
    other.close()
    return found


def run(connection: sqlite3.Connection, gate: Gate, *operations, max_queued: int = 1_000) -> list[Future]:
    """Queue all operations before the writer starts, let it run, close."""
    writer = Writer(connection, gate, max_queued)
    futures = [writer.submit(operation) for operation in operations]
    writer.start()
    writer.close()
    return futures


def test_what_waits_commits_together_in_bounded_groups(connection: sqlite3.Connection, tmp_path: Path) -> None:
    gate = Gate()
    futures = run(connection, gate, *(insert(n) for n in range(2 * MAX_GROUP + 5)))
    assert all(future.result(0) == 1 for future in futures)
    assert gate.steps.count("committed") == 3
    assert numbers(tmp_path / "plain.sqlite") == list(range(2 * MAX_GROUP + 5))


def test_a_failing_operation_undoes_its_own_writes_only(connection: sqlite3.Connection, tmp_path: Path) -> None:
    def half(tx) -> None:
        insert(7)(tx)
        raise LookupError

    good, bad, duplicate, after = run(connection, Gate(), insert(1), half, insert(1), insert(2))
    assert isinstance(bad.exception(0), LookupError)
    assert isinstance(duplicate.exception(0), OpenLoraError)
    assert (good.result(0), after.result(0)) == (1, 1)
    assert numbers(tmp_path / "plain.sqlite") == [1, 2]


def test_a_failing_commit_fails_every_operation_of_its_group(connection: sqlite3.Connection, tmp_path: Path) -> None:
    def refuse(step: str) -> None:
        if step == "commit":
            raise sqlite3.OperationalError

    first, second = run(connection, refuse, insert(1), insert(2))
    for future in (first, second):
        assert future.exception(0).code is ErrorCode.STORAGE_FAILED
    assert first.exception(0) is not second.exception(0)
    assert numbers(tmp_path / "plain.sqlite") == []


def test_an_operation_that_ends_the_transaction_fails_its_group_and_the_next_goes_on(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    def roll_back(_tx) -> None:
        connection.execute("ROLLBACK")
        raise sqlite3.OperationalError

    first, second, third = run(connection, Gate(), insert(1), roll_back, insert(3))
    assert first.exception(0).code is second.exception(0).code is ErrorCode.STORAGE_FAILED
    assert third.result(0) == 1
    assert numbers(tmp_path / "plain.sqlite") == [3]


def test_a_begin_that_fails_fails_those_who_wait(connection: sqlite3.Connection, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "plain.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    connection.execute("PRAGMA busy_timeout = 1")
    futures = run(connection, Gate(), insert(1), insert(2))
    other.close()
    assert [future.exception(0).code for future in futures] == [ErrorCode.STORAGE_FAILED] * 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_dies_leaves_nobody_waiting(connection: sqlite3.Connection, tmp_path: Path) -> None:
    def die(_tx) -> None:
        raise SystemExit

    writer = Writer(connection, Gate())
    futures = [writer.submit(operation) for operation in (insert(1), die, *map(insert, range(2, 100)))]
    writer.start()
    writer.close()
    assert all(isinstance(future.exception(0), OpenLoraError) for future in futures)
    assert numbers(tmp_path / "plain.sqlite") == []
    with pytest.raises(OpenLoraError):
        writer.submit(insert(1))


async def test_a_full_queue_says_busy_and_when_to_come_back(tmp_path: Path) -> None:
    gate = Gate("commit")
    async with open_journal(tmp_path / "journal.sqlite", max_queued=2, on_step=gate) as journal:
        running = asyncio.create_task(admit(journal, request(0)))
        await gate.wait()
        waiting = [asyncio.create_task(admit(journal, request(nonce))) for nonce in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(OpenLoraError) as caught:
            await admit(journal, request(3))
        assert caught.value.code is ErrorCode.BUSY
        assert caught.value.retry_after_ms
        gate.open.set()
        assert all(isinstance(one, Admitted) for one in await asyncio.gather(running, *waiting))


async def test_cancelling_a_waiting_call_keeps_it_from_running(tmp_path: Path) -> None:
    gate = Gate("commit")
    async with open_journal(tmp_path / "journal.sqlite", on_step=gate) as journal:
        running = asyncio.create_task(admit(journal, request(0)))
        await gate.wait()
        waiting = asyncio.create_task(admit(journal, request(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.open.set()
        await running
        assert isinstance(await admit(journal, request(1)), Admitted)


async def test_cancelling_a_running_call_lets_it_commit_whole(tmp_path: Path) -> None:
    gate = Gate("admit.requests")
    async with open_journal(tmp_path / "journal.sqlite", on_step=gate) as journal:
        task = asyncio.create_task(admit(journal, request(0), opening=voucher(1, 1)))
        await gate.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.at = ""
        gate.open.set()
        ledger = await journal.ledger(key_of())
        assert (ledger.reserved, ledger.voucher_value) == (1_000, 3)
        await journal.check_integrity(deep=True)


async def test_cancelling_at_every_step_leaves_a_whole_journal(tmp_path: Path) -> None:
    """The awaiting task goes away before each step in turn: the operation is there entirely or not at all."""
    seen: set[RequestState | None] = set()
    for number in range(1, 40):
        saboteur = Saboteur(number)
        path = tmp_path / f"{number}.sqlite"
        async with open_journal(path, on_step=saboteur) as journal:
            task = saboteur.task = asyncio.create_task(admit(journal, request(0), opening=voucher(1, 1)))
            await asyncio.wait([task])
        with Reader(path) as reader:
            reader.check_integrity(deep=True)
            seen.add(reader.request_state(digest_of(request(0))))
        if not task.cancelled():
            break
    else:
        pytest.fail("the operation has more than 40 steps")
    assert seen == {RequestState.RUNNING}


async def test_close_commits_what_is_queued_and_refuses_what_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = open_journal(path)
    tasks = [asyncio.create_task(admit(journal, request(nonce))) for nonce in range(100)]
    await asyncio.sleep(0)
    await journal.close()
    assert all(isinstance(one, Admitted) for one in await asyncio.gather(*tasks))
    with pytest.raises(OpenLoraError) as caught:
        await admit(journal, request(100))
    assert caught.value.code is ErrorCode.DRAINING
    await journal.close()
    assert not path.with_name("journal.sqlite-wal").exists(), "a clean close leaves one file"
    with Reader(path) as reader:
        assert reader.summary().running == 100


async def test_a_full_database_refuses_clearly_and_works_again_with_room(tmp_path: Path) -> None:
    clock = Clock()
    async with open_journal(tmp_path / "journal.sqlite", clock) as journal:
        connection = journal._writer._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        admitted = 0
        with pytest.raises(OpenLoraError) as caught:
            for nonce in range(1_000):
                await admit(journal, request(nonce))
                admitted += 1
        assert caught.value.code is ErrorCode.STORAGE_FULL
        assert admitted > 0
        assert (await journal.ledger(key_of())).reserved == 1_000 * admitted
        await journal.check_integrity(deep=True)
        connection.execute("PRAGMA max_page_count = 100000")
        assert isinstance(await admit(journal, request(admitted)), Admitted)
        await journal.check_integrity(deep=True)


def test_a_cancelled_future_is_skipped(connection: sqlite3.Connection, tmp_path: Path) -> None:
    writer = Writer(connection, Gate())
    first, second = writer.submit(insert(1)), writer.submit(insert(2))
    first.cancel()
    writer.start()
    writer.close()
    with pytest.raises(CancelledError):
        first.result(0)
    assert second.result(0) == 1
    assert numbers(tmp_path / "plain.sqlite") == [2]
