"""Keeps the directory told of what this node serves and where, and finds it peers who care. In the network's thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from ..protocol.errors import OpenLoraError
from .advertising import Advertising
from .directory import Directory

RECORD_LIFETIME_S = 3600
LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often what is done, in seconds."""

    provide: float = 6 * 3600.0
    record: float = RECORD_LIFETIME_S / 2
    find: float = 300.0
    retry: float = 60.0
    """After a provide that no other peer confirms."""


class Announcer:
    """Provider records, the node's own record, and peers for each base model served or followed."""

    def __init__(self, advertising: Advertising, directory: Directory, pace: Pace | None = None) -> None:
        self._advertising = advertising
        self._directory = directory
        self._pace = pace or Pace()
        self._due: dict[tuple[str, bytes], float] = {}
        self.followed: set[bytes] = set()

    async def run(self) -> None:
        """Until cancelled. What fails is tried again later."""
        while True:
            if not self._directory.degraded:
                try:
                    await self._round()
                except OpenLoraError as error:
                    logger.debug("announcing: %s", error)
                except Exception:
                    logger.exception("announcing failed; it goes on in %.0f s", self._pace.retry)
                    await trio.sleep(self._pace.retry)
            await trio.sleep(min(LOOK_EVERY_S, self._pace.find))

    async def _round(self) -> None:
        bases = self._advertising.bases
        for base in bases:
            if self._is_due("provide", base):
                confirmed = await self._directory.provide(base)
                self._next("provide", base, self._pace.provide if confirmed else self._pace.retry)
        record = self._advertising.record(RECORD_LIFETIME_S) if self._is_due("record", b"") else None
        if record is not None:
            await self._directory.publish(record)
            self._next("record", b"", self._pace.record)
        for base in {*bases, *self.followed}:
            if self._is_due("find", base):
                await self._directory.find(base)
                self._next("find", base, self._pace.find)

    def _is_due(self, what: str, base: bytes) -> bool:
        return trio.current_time() >= self._due.get((what, base), -float("inf"))

    def _next(self, what: str, base: bytes, pause: float) -> None:
        self._due[what, base] = trio.current_time() + pause
