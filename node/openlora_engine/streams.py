"""The events of one request on their way from the engine's thread to a reader on the event loop: bounded both ways."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from .request import TokenEvent


class EventStream:
    """Events of one request in order; an async iterator for one reader. Lives on the event loop's thread.

    A reader that lets `limit` events pile up has its request paused, and resumed once half of them are taken. What was
    under way when the pause was asked for still arrives: a few events more, never more than a step's.
    """

    def __init__(
        self,
        request_id: str,
        num_choices: int,
        limit: int,
        *,
        pause: Callable[[str], None],
        resume: Callable[[str], None],
        cancel: Callable[[str], None],
    ) -> None:
        self.request_id = request_id
        self._events: deque[TokenEvent] = deque()
        self._num_open = num_choices
        self._limit = limit
        self._pause, self._resume, self._cancel = pause, resume, cancel
        self._paused = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether no event will be pushed any more."""
        return self._num_open == 0 or self._closed

    @property
    def paused(self) -> bool:
        """Whether the reader lags and the engine was told."""
        return self._paused

    def push(self, event: TokenEvent) -> None:
        """Take an event from the engine. Events after the end are dropped: the reader is gone."""
        if self.ended:
            return
        self._events.append(event)
        if event.finish_reason is not None:
            self._num_open = 0 if event.error is not None else self._num_open - 1
        if len(self._events) >= self._limit and not self._paused and not self.ended:
            self._paused = True
            self._pause(self.request_id)
        self._wake()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> TokenEvent:
        """The next event; ends after the last choice's last event, and at `aclose`."""
        while not self._events:
            if self.ended:
                raise StopAsyncIteration
            assert self._waiter is None, "a stream has one reader"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        self._caught_up()
        return event

    def take(self) -> Sequence[TokenEvent]:
        """All events that lie ready."""
        events = tuple(self._events)
        self._events.clear()
        self._caught_up()
        return events

    async def aclose(self) -> None:
        """Cancel the request unless it ended, and forget what was not read."""
        if not self.ended:
            self._cancel(self.request_id)
        self._closed = True
        self._events.clear()
        self._wake()

    def _caught_up(self) -> None:
        if self._paused and not self.ended and len(self._events) <= self._limit // 2:
            self._paused = False
            self._resume(self.request_id)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
