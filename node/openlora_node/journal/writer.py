"""The one thread that writes: it runs queued operations and commits those that wait together in one fsync.

Each operation has a savepoint, so one that fails leaves the others alone. A future resolves only after the COMMIT that
holds its operation. Knows no table.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ..protocol.errors import ErrorCode, OpenLoraError
from .database import OnStep, Transaction, storage_error

T = TypeVar("T")
MAX_GROUP = 64
MAX_QUEUED = 1_024
RETRY_AFTER_MS = 100

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """One operation, its future, and what it returned while its COMMIT is outstanding."""

    operation: Callable[[Transaction], Any]
    future: Future[Any]
    result: Any = None


class Writer:
    """Owns the connection from `start` to the end of `close`. Thread-safe."""

    def __init__(self, connection: sqlite3.Connection, on_step: OnStep, max_queued: int = MAX_QUEUED) -> None:
        self._connection = connection
        self._transaction = Transaction(connection, on_step)
        self._on_step = on_step
        self._max_queued = max_queued
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, operation: Callable[[Transaction], T]) -> Future[T]:
        """Queue an operation. Raises OpenLoraError BUSY when the queue is full, DRAINING once closing.

        A future cancelled before its operation began never runs it; after that it commits all the same.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise OpenLoraError(ErrorCode.DRAINING)
            if len(self._jobs) >= self._max_queued:
                raise OpenLoraError(ErrorCode.BUSY, retry_after_ms=RETRY_AFTER_MS)
            self._jobs.append(_Job(operation, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Run what is queued, fold the log into the database, close. Blocks; later calls wait for the same end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._commit_group()
        except BaseException:
            _log.exception("the journal's writer stopped; restart the process")
            raise
        finally:
            self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            abandoned, self._jobs = self._jobs, deque()
        for job in abandoned:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(OpenLoraError(ErrorCode.STORAGE_FAILED))
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _wait(self) -> bool:
        """Wait for work. False once closing and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            return bool(self._jobs)

    def _next(self) -> _Job | None:
        with self._changed:
            return self._jobs.popleft() if self._jobs else None

    def _take(self, count: int) -> Iterator[_Job]:
        """Jobs from the queue that nobody cancelled."""
        for _ in range(count):
            job = self._next()
            if job is None:
                return
            if job.future.set_running_or_notify_cancel():
                yield job

    def _commit_group(self) -> None:
        """One transaction over what is queued now or arrives while it runs, `MAX_GROUP` operations at most."""
        group: list[_Job] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for job in self._take(MAX_GROUP):
                group.append(job)
                self._attempt(job)
            self._on_step("commit")
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._fail(group, storage_error(error))
            return
        except BaseException:
            self._fail(group, OpenLoraError(ErrorCode.INTERNAL))
            raise
        self._on_step("committed")
        for job in group:
            if not job.future.done():
                job.future.set_result(job.result)

    def _attempt(self, job: _Job) -> None:
        """Run one operation. Its own failure is its own; one that ended the transaction fails the whole group."""
        self._connection.execute("SAVEPOINT operation")
        try:
            job.result = job.operation(self._transaction)
        except Exception as error:
            # SQLite rolls the whole transaction back by itself after some errors of the disk.
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO operation")
            job.future.set_exception(storage_error(error) if isinstance(error, sqlite3.Error) else error)
        self._connection.execute("RELEASE operation")

    def _fail(self, group: list[_Job], error: OpenLoraError) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        # Where BEGIN itself failed nobody was taken from the queue yet: those who wait get the error.
        for job in group or self._take(MAX_GROUP):
            if not job.future.done():
                job.future.set_exception(OpenLoraError(error.code, error.message))
