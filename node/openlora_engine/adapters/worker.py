"""One background thread that does pieces of work in the order they came, on one core: the step needs the others."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Event, Thread

import torch

logger = logging.getLogger(__name__)


class Worker:
    """Runs what is submitted, one at a time. A piece of work reports its own failures; one that raises is logged.

    torch's operations on this thread use one core. Two teams of OpenMP threads on the same cores would spin for each
    other's, and a step would take many times as long.
    """

    def __init__(self, name: str) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        num_threads, self._serial = torch.get_num_threads(), Event()
        self._thread.start()
        self._serial.wait()
        # The number is each thread's own, but the last one set is also what threads that come later begin with.
        torch.set_num_threads(num_threads)

    def submit(self, work: Callable[[], None]) -> None:
        """Queue a piece of work; after `close` it is dropped."""
        with self._changed:
            if not self._closed:
                self._work.append(work)
                self._changed.notify()

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        with self._changed:
            self._closed = True
            self._work.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look takes over the last number set: let that be this one
        self._serial.set()
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                logger.exception("work on thread %s failed", self._thread.name)
            del work  # or the last job would keep its blob while the thread waits

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._work and not self._closed:
                self._changed.wait()
            return None if self._closed else self._work.popleft()
