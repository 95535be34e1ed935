"""The fetching side of /openlora/artifact/1: an artifact from several peers at once, no chunk kept unproven.

A source that sends a byte which its proof does not cover is dropped at that chunk and reported; one that is slow keeps
only what no other takes over, and its place only while nobody waits for it. What was kept survives this process: the
next fetch goes on from there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import ArtifactStore, Progress
from ..protocol.errors import ErrorCode, OpenLoraError
from .transfer_asking import Asking, Open
from .transfer_download import Download
from .transfer_patience import FetchOptions
from .transfer_send import MaySend, Sender, SenderOptions

__all__ = ["FetchOptions", "Fetcher", "MaySend", "Open", "Sender", "SenderOptions", "Sources"]

Sources = Callable[[bytes], AsyncGenerator[str, None]]
"""Peers that may have an artifact, the likeliest first; called once a fetch and read only as far as needed."""


class Fetcher:
    """Fetches artifacts into a store. Made and used in asyncio; two fetches of one artifact are one."""

    def __init__(self, store: ArtifactStore, open_session: Open, options: FetchOptions | None = None) -> None:
        self._store = store
        self._open = open_session
        self._options = options or FetchOptions()
        self._running: dict[bytes, _Fetch] = {}

    async def fetch(
        self, artifact: bytes, sources: Sources, *, progress: Progress | None = None, limit: int | None = None
    ) -> Path:
        """The artifact's folder in the store, fetched if it is not there. `limit`: most bytes that may come.

        `progress` is called in this loop with bytes kept and bytes in all. Raises NOT_FOUND when no source has it,
        ACCESS_DENIED when those that have it may not send it here, NODE_LOST when the sources were lost or too slow,
        UNSUPPORTED beyond the limit, BAD_MANIFEST for an artifact that holds what none may hold, STORAGE_FULL,
        STORAGE_….
        """
        folder = self._store.folder(artifact)
        if folder is not None:
            return folder
        running = self._running.get(artifact)
        if running is None:
            running = _Fetch(self._store, self._open, self._options, artifact, limit)
            running.task = asyncio.create_task(running.run(sources), name=f"fetch {artifact.hex()[:12]}")
            self._running[artifact] = running
            running.task.add_done_callback(lambda _: self._running.pop(artifact, None))
        return await running.joined(progress)

    async def close(self) -> None:
        """End all fetches; what came stays. Their callers get CANCELLED."""
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Place:
    """A source that is asked, and the task that asks it."""

    asking: Asking
    task: asyncio.Task[None]


class _Fetch:
    """One artifact, of whoever wants it, from whoever has it."""

    def __init__(
        self, store: ArtifactStore, open_session: Open, options: FetchOptions, artifact: bytes, limit: int | None
    ) -> None:
        self.task: asyncio.Task[Path] | None = None
        self._open = open_session
        self._options = options
        self._download = Download(store, artifact, limit, options)
        self._waiting = 0
        self._places: dict[str, _Place] = {}
        self._later: deque[str] = deque()
        """Sources that gave their place to another: asked again when all have been."""
        self._refusals: list[OpenLoraError] = []

    async def joined(self, progress: Progress | None) -> Path:
        """Wait for the end. The fetch is cancelled when the last who waits is."""
        assert self.task is not None
        if progress is not None:
            self._download.watchers.append(progress)
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self.task.cancelled():
                raise OpenLoraError(ErrorCode.CANCELLED, "the fetch was cancelled") from None
            if self._waiting == 1:
                self.task.cancel()
                await asyncio.wait([self.task])
            raise
        finally:
            self._waiting -= 1
            if progress is not None:
                self._download.watchers.remove(progress)

    async def run(self, sources: Sources) -> Path:
        """Fetch until it is complete, no source is left, or all of them are too slow."""
        try:
            await self._download.take_up()
            while True:
                if not self._download.is_complete:
                    await self._gather(sources)
                folder = await self._download.finish()
                if folder is not None:
                    return folder
        finally:
            self._download.leave()

    async def _gather(self, sources: Sources) -> None:
        """Run sources side by side until nothing is missing. Raises why it cannot be completed."""
        feeder = asyncio.create_task(self._feed(sources), name="artifact sources")
        feeder.add_done_callback(lambda _: self._download.changed.fire())
        clock = asyncio.get_running_loop().time
        try:
            while not self._download.is_complete and self._download.fatal is None:
                if feeder.done() and not self._places:
                    feeder.result()
                    raise self._why()
                deadline = self._download.deadline
                if deadline is not None and clock() >= deadline:
                    raise OpenLoraError(
                        ErrorCode.NODE_LOST, "its sources are too slow: what came is kept, fetch the artifact again"
                    )
                await self._download.changed.wait(deadline)
            if self._download.fatal is not None:
                raise self._download.fatal
        finally:
            tasks = [feeder, *(place.task for place in self._places.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._later.clear()

    async def _feed(self, sources: Sources) -> None:
        """Ask sources as places become free or are taken from the slow; those then get what places are left."""
        seen: set[str] = set()
        async with aclosing(sources(self._download.artifact)) as peers:
            async for peer in peers:
                if peer not in seen:
                    seen.add(peer)
                    await self._find_place()
                    self._ask(peer)
        while self._later:
            while len(self._places) >= self._options.sources:
                await self._download.changed.wait()
            self._ask(self._later.popleft())

    def _ask(self, peer: str) -> None:
        asking = Asking(self._download, peer, self._open, self._options)
        task = asyncio.create_task(asking.run(), name=f"source {peer}")
        self._places[peer] = _Place(asking, task)

        def ended(_: object) -> None:
            del self._places[peer]
            self._refusals.extend(asking.refusals)
            self._download.changed.fire()

        task.add_done_callback(ended)

    async def _find_place(self) -> None:
        """Wait until a place is free, or one of the sources asked proves too slow: that one has to wait then."""
        clock = asyncio.get_running_loop().time
        while len(self._places) >= self._options.sources:
            slowest = min(self._places.values(), key=self._patience_ends)
            ends = self._patience_ends(slowest)
            if clock() < ends or self._download.is_beginning:
                await self._download.changed.wait(None if self._download.is_beginning else ends)
                continue
            self._later.append(slowest.asking.peer)
            slowest.task.cancel()
            await asyncio.wait([slowest.task])

    def _patience_ends(self, place: _Place) -> float:
        # While the manifest was taken in, no source could bring anything.
        return max(place.asking.patience.until, self._download.begun_at + self._options.slack_s)

    def _why(self) -> OpenLoraError:
        """The most telling of what the sources said."""
        codes = (
            ErrorCode.ACCESS_DENIED,
            ErrorCode.RATE_LIMITED,
            ErrorCode.BUSY,
            ErrorCode.NODE_LOST,
            ErrorCode.BAD_CHUNK,
        )
        for code in codes:
            for error in self._refusals:
                if error.code is code:
                    return error
        return OpenLoraError(ErrorCode.NOT_FOUND, "no reachable node has this artifact")
