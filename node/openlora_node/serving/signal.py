"""A bell that any number of tasks wait for. Each ring wakes those who wait now; nobody misses one that it asked for."""

from __future__ import annotations

import asyncio


class Signal:
    """Take `next` before looking at what may have changed, then wait for it: a change in between is not lost."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def fire(self) -> None:
        """Wake everyone who waits."""
        rung, self.next = self.next, asyncio.Event()
        rung.set()
