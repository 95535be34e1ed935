"""One response on its way from the task that earns it to the client that reads it: bounded, safe to leave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..protocol.errors import OpenLoraError
from .attempt import Finished
from .progress import Piece

MAX_WAITING = 64
"""Pieces that a slow client lets pile up; then the node is held back."""


class Answer:
    """Pieces, then the end. The reader iterates, and calls `hang_up` when it leaves, finished or not."""

    def __init__(self, on_hang_up: Callable[[], None] = lambda: None) -> None:
        self._pieces: deque[Piece] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._error: OpenLoraError | None = None
        self._ended = False
        self._left = False
        self.on_hang_up = on_hang_up
        self.node: bytes | None = None
        """The node that is asked now."""
        self.finished: Finished | None = None
        """How it ended, once the iteration is over."""

    async def put(self, piece: Piece) -> None:
        """The earning side: hand on a piece; waits for a slow reader, never for one that left."""
        while len(self._pieces) >= MAX_WAITING and not self._left:
            self._room.clear()
            await self._room.wait()
        if not self._left:
            self._pieces.append(piece)
            self._changed.set()

    def finish(self, finished: Finished) -> None:
        """The earning side: the receipt is kept."""
        self.finished = finished
        self._ended = True
        self._changed.set()

    def fail(self, error: OpenLoraError) -> None:
        """The earning side: it ended in an error. Only the first end counts."""
        if not self._ended:
            self._error = error
            self._ended = True
            self._changed.set()

    def hang_up(self) -> None:
        """The reading side: gone. What runs is cancelled; what came is still checked and paid."""
        if not self._left:
            self._left = True
            self._pieces.clear()
            self._room.set()
            if not self._ended:
                self.on_hang_up()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Piece:
        """The next piece. Raises the error that the response ended in."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._room.set()
        return self._pieces.popleft()
