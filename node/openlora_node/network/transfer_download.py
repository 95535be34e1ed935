"""An artifact on its way into the store, shared by its sources: what is missing, what came, when it has to be whole."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from pathlib import Path

from ..artifacts import ArtifactStore, Partial, Progress
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import Chunk
from .transfer_patience import FetchOptions
from .transfer_plan import Plan


class Signal:
    """Wakes all who wait. Whoever looked before it asked to wait misses nothing: both happen in one step."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self, until: float | None = None) -> None:
        """Until the next `fire`, or the loop's time `until`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await future

    def fire(self) -> None:
        """Wake them."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Download:
    """One artifact. Begun by the first manifest, of a source or of an earlier process. Used in one asyncio loop."""

    def __init__(self, store: ArtifactStore, artifact: bytes, limit: int | None, options: FetchOptions) -> None:
        """`limit`: most bytes that may come."""
        self.artifact = artifact
        self.plan: Plan | None = None
        self.changed = Signal()
        """Something was begun, came, was given back, or failed."""
        self.watchers: list[Progress] = []
        self.fatal: OpenLoraError | None = None
        """What no other source could help."""
        self.begun_at = -math.inf
        """When the plan was made, in the loop's time."""
        self._store = store
        self._limit = limit
        self._options = options
        self._partial: Partial | None = None
        self._beginning = asyncio.Lock()
        self._deadline = asyncio.get_running_loop().time() + options.whole_s

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing; it may still not be what it claims."""
        return self.plan is not None and len(self.plan) == 0

    @property
    def is_beginning(self) -> bool:
        """Whether the disk is looked at for what is there already, while no source can bring anything."""
        return self._beginning.locked()

    @property
    def deadline(self) -> float | None:
        """When it has to be complete, in the loop's time; None while it is being begun."""
        return None if self.is_beginning else self._deadline

    @property
    def done(self) -> int:
        """Bytes kept."""
        return self._partial.done if self._partial is not None else 0

    async def take_up(self) -> None:
        """Go on from what an earlier process left, if it did."""
        known = await asyncio.to_thread(self._store.begun, self.artifact)
        if known is not None:
            await self.begin(known)

    async def begin(self, data: bytes) -> None:
        """The manifest is known: reserve room, see what is there already. What fails here fails for every source."""
        async with self._beginning:
            if self._partial is not None:
                return
            try:
                self._partial = await self._store.begin(data, limit=self._limit)
            except OpenLoraError as error:
                self.stop(error)
                raise
            self._plan_the_rest(self._partial)
            self._tell()
        self.changed.fire()

    async def keep(self, chunk: Chunk) -> None:
        """Keep a chunk, if its proof covers it. Raises BAD_CHUNK, MALFORMED; any other error ends the download."""
        assert self._partial is not None
        try:
            await self._store.keep(self._partial, chunk.file, chunk.index, chunk.data, chunk.proof)
        except ProtocolError:
            raise
        except OpenLoraError as error:
            self.stop(error)
            raise
        self._tell()

    async def finish(self) -> Path | None:
        """Put it in its place. None when what an earlier process left was damaged: that is missing again."""
        assert self._partial is not None
        try:
            return await self._store.finish(self._partial)
        except ProtocolError as error:
            if error.code is not ErrorCode.BAD_CHUNK:
                await self._store.discard(self._partial)  # it can never become an artifact
                raise
            self._plan_the_rest(self._partial)
            return None

    def leave(self) -> None:
        """Let go of it; what came stays."""
        if self._partial is not None:
            self._store.leave(self._partial)

    def stop(self, error: OpenLoraError) -> None:
        """Nothing more can come of it."""
        self.fatal = self.fatal or error
        self.changed.fire()

    def _plan_the_rest(self, partial: Partial) -> None:
        self.plan = Plan(partial.missing())
        self.begun_at = asyncio.get_running_loop().time()
        self._deadline = self.begun_at + self._options.whole_s + (partial.size - partial.done) / self._options.min_rate

    def _tell(self) -> None:
        assert self._partial is not None
        for watcher in list(self.watchers):
            watcher(self._partial.done, self._partial.size)
