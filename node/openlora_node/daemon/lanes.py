"""The engines of one base as serving sees them: each a lane that counts what runs and remembers what is loaded."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

from ..engineclient import Chunk, EngineInfo, EngineLoad, Mix
from ..openai import Body
from ..protocol.pipeline import Pipeline
from ..serving import EngineLike
from .choosing import Candidate, choose

MAX_KNOWN = 1_024
"""Adapters of which a lane remembers that its engine has them, most recently used ones."""
PENDING_S = 2.0
"""A request that was given a lane and did not begin to generate by then was refused on the way."""


class Lane:
    """One engine. `is_up` tells whether it serves now; `on_load` takes the seconds of each adapter that it learnt."""

    def __init__(
        self,
        engine: EngineLike,
        is_up: Callable[[], bool] = lambda: True,
        on_load: Callable[[float], object] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._is_up = is_up
        self._on_load = on_load
        self._monotonic = monotonic
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._pending: deque[float] = deque()
        self.running = 0
        """Requests that generate in it."""
        self.chosen = 0

    def forget(self) -> None:
        """The engine ended: what it had loaded is gone."""
        self._known.clear()

    def drop(self, artifact: bytes) -> None:
        """The engine was told to forget one."""
        self._known.pop(artifact, None)

    def take(self, number: int) -> None:
        """A request was given this lane, the `number`-th of all."""
        self.chosen = number
        self._pending.append(self._monotonic())

    def candidate(self, adapters: Sequence[bytes]) -> Candidate:
        """As a request on these adapters finds it."""
        while self._pending and self._monotonic() - self._pending[0] > PENDING_S:
            self._pending.popleft()
        knows = sum(adapter in self._known for adapter in adapters)
        return Candidate(self._is_up(), self.running + len(self._pending), knows, self.chosen)

    # EngineLike.

    async def info(self) -> EngineInfo:
        """What it serves and runs as."""
        return await self._engine.info()

    async def count(self, body: Body, mix: Mix) -> int:
        """Prompt tokens as the engine will count them."""
        return await self._engine.count(body, mix)

    def generate(
        self, body: Body, mix: Mix, *, max_tokens: int, tenant: str, request_id: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Run, counted."""
        began = self._engine.generate(body, mix, max_tokens=max_tokens, tenant=tenant, request_id=request_id)
        return self._counted(began)

    @asynccontextmanager
    async def _counted(
        self, began: AbstractAsyncContextManager[AsyncIterator[Chunk]]
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        if self._pending:
            self._pending.popleft()
        self.running += 1
        try:
            async with began as chunks:
                yield chunks
        finally:
            self.running -= 1

    async def ensure(self, artifact: bytes, folder: Path) -> None:
        """Have an adapter loaded from its folder."""
        began = self._monotonic()
        await self._engine.ensure(artifact, folder)
        if artifact not in self._known:
            self._on_load(self._monotonic() - began)
            if len(self._known) >= MAX_KNOWN:
                self._known.popitem(last=False)
        self._known[artifact] = None
        self._known.move_to_end(artifact)

    async def load(self) -> EngineLoad:
        """How busy it is."""
        return await self._engine.load()


class Lanes:
    """All engines of one base. Called with a request's pipeline it gives the lane to run in."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = tuple(lanes)
        self._numbers = count(1)

    def __call__(self, pipeline: Pipeline) -> Lane:
        """The lane for one request."""
        adapters = [adapter.id for adapter in pipeline.adapters]
        lane = self._lanes[choose([lane.candidate(adapters) for lane in self._lanes])]
        lane.take(next(self._numbers))
        return lane
