"""Validates and hashes adapters on the loader's thread: one reading for all who ask meanwhile."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from threading import Lock

from ..errors import Code, EngineError
from .blob import Storage
from .problems import untraced
from .source import Identity, Source, identify
from .worker import Worker

logger = logging.getLogger(__name__)


class Identifier:
    """Identities as futures. They fail with EngineError only."""

    def __init__(self, storage: Storage, worker: Worker) -> None:
        self._storage = storage
        self._worker = worker
        self._lock = Lock()
        self._asked: dict[Source, Future[Identity]] = {}

    def identify(self, source: Source) -> Future[Identity]:
        """What the source's files are now."""
        with self._lock:
            future = self._asked.get(source)
            if future is None:
                future = self._asked[source] = Future()
                self._worker.submit(partial(self._identify, source, future))
            return future

    def close(self) -> None:
        """Fail what is still asked for; the worker must be closed before."""
        with self._lock:
            for future in self._asked.values():
                future.set_exception(EngineError(Code.DRAINING, "the engine stops"))
            self._asked.clear()

    def _identify(self, source: Source, future: Future[Identity]) -> None:
        found: Identity | EngineError
        try:
            found = identify(source, self._storage)
        except EngineError as error:
            found = untraced(error)
        except Exception:
            logger.exception("an adapter could not be read")
            found = EngineError(Code.ENGINE_FAILED, "the adapter could not be read; see the engine's log")
        with self._lock:
            # From here on a new question gets a new reading: the files may have changed since they were opened.
            del self._asked[source]
        if isinstance(found, EngineError):
            future.set_exception(found)
        else:
            future.set_result(found)
