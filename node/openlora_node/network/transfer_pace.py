"""Holds what several senders send together to a rate, chunk by chunk in the order in which they ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST_S = 0.25


class Pace:
    """`rate` bytes a second over all callers, a quarter of a second's worth at once."""

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._paid_until = float("-inf")

    async def take(self, size: int) -> None:
        """Wait for the turn of `size` bytes. A caller that is cancelled while it waits has used its turn up."""
        now = self._clock()
        self._paid_until = max(self._paid_until, now - BURST_S) + size / self._rate
        delay = self._paid_until - now
        if delay > 0:
            await self._sleep(delay)
