"""The fetching side of /openlora/artifact/1: an artifact from several peers at once, no chunk kept unproven.

A source that sends a byte which its proof does not cover is dropped at that chunk and reported; one that is slow keeps
only what no other takes over. What was kept survives this process: the next fetch goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import ArtifactStore, Partial, Progress
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import ArtifactId
from ..protocol.manifest import artifact_id
from ..protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from .scores import Fault
from .session import Session
from .transfer_plan import Claim, Plan, claim_size
from .transfer_send import MaySend, Sender, SenderOptions

__all__ = ["FetchOptions", "Fetcher", "MaySend", "Open", "Sender", "SenderOptions", "Sources"]

Open = Callable[[str], Awaitable[Session[ArtifactMessage]]]
"""Opens an artifact session with a peer that is connected, or can be. Raises NODE_LOST, UNSUPPORTED, RATE_LIMITED."""
Sources = Callable[[bytes], AsyncGenerator[str, None]]
"""Peers that may have an artifact, the likeliest first; called once a fetch and read only as far as needed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchOptions:
    """How patient a fetch is. Times in seconds."""

    sources: int = 6
    """Fetched from at once."""
    open_s: float = 15.0
    answer_s: float = 20.0
    """Longest wait for the next message of a source; 256 KiB must come within it."""
    attempts: int = 4
    """Times that a source is tried which was lost or asked us to wait."""
    first_wait_s: float = 0.2
    longest_wait_s: float = 30.0


class _LiedError(Exception):
    """A source sent what cannot be true, or not what was asked for."""


class _Signal:
    """Wakes all who wait. Whoever looked before it asked to wait misses nothing: both happen in one step."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def next(self) -> asyncio.Future[None]:
        """Done at the next `fire`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def fire(self) -> None:
        """Wake them."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


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
        ACCESS_DENIED when those that have it may not send it here, NODE_LOST when the sources were lost, UNSUPPORTED
        beyond the limit, BAD_MANIFEST for an artifact that holds what none may hold, STORAGE_FULL, STORAGE_….
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


class _Fetch:
    """One artifact on its way."""

    def __init__(
        self, store: ArtifactStore, open_session: Open, options: FetchOptions, artifact: bytes, limit: int | None
    ) -> None:
        self.task: asyncio.Task[Path] | None = None
        self._store = store
        self._open = open_session
        self._options = options
        self._artifact = artifact
        self._limit = limit
        self._watchers: list[Progress] = []
        self._waiting = 0
        self._partial: Partial | None = None
        self._plan: Plan | None = None
        self._beginning = asyncio.Lock()
        self._changed = _Signal()
        self._fatal: OpenLoraError | None = None
        self._refusals: list[OpenLoraError] = []

    async def joined(self, progress: Progress | None) -> Path:
        """Wait for the end. The fetch is cancelled when the last who waits is."""
        assert self.task is not None
        if progress is not None:
            self._watchers.append(progress)
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
                self._watchers.remove(progress)

    async def run(self, sources: Sources) -> Path:
        """Fetch until it is complete or no source is left."""
        try:
            known = await asyncio.to_thread(self._store.begun, self._artifact)
            if known is not None:
                await self._begin(known)
            while True:
                await self._gather(sources)
                assert self._partial is not None
                try:
                    return await self._store.finish(self._partial)
                except ProtocolError as error:
                    if error.code is not ErrorCode.BAD_CHUNK:
                        await self._store.discard(self._partial)  # it can never become an artifact
                        raise
                    # What an earlier process left here was damaged: only those files are fetched again.
                    self._plan = Plan(self._partial.missing())
        finally:
            if self._partial is not None:
                self._store.leave(self._partial)

    async def _gather(self, sources: Sources) -> None:
        """Run sources side by side until nothing is missing. Raises why it cannot be completed."""
        if self._is_complete():
            return
        places = asyncio.Semaphore(self._options.sources)
        workers: set[asyncio.Task[None]] = set()
        feeder = asyncio.create_task(self._feed(sources, places, workers), name="artifact sources")
        feeder.add_done_callback(lambda _: self._changed.fire())
        try:
            while not self._is_complete() and self._fatal is None:
                if feeder.done() and not workers:
                    feeder.result()
                    raise self._why()
                await self._changed.next()
            if self._fatal is not None:
                raise self._fatal
        finally:
            for task in (feeder, *workers):
                task.cancel()
            await asyncio.gather(feeder, *workers, return_exceptions=True)

    async def _feed(self, sources: Sources, places: asyncio.Semaphore, workers: set[asyncio.Task[None]]) -> None:
        """Start a worker a source, as places become free."""
        seen: set[str] = set()

        def ended(task: asyncio.Task[None]) -> None:
            workers.discard(task)
            places.release()
            self._changed.fire()

        async with aclosing(sources(self._artifact)) as peers:
            async for peer in peers:
                if peer not in seen:
                    seen.add(peer)
                    await places.acquire()
                    worker = asyncio.create_task(self._use(peer), name=f"source {peer}")
                    workers.add(worker)
                    worker.add_done_callback(ended)

    async def _use(self, peer: str) -> None:
        """Take what one source gives, over as many sessions as its patience and ours allow."""
        failures, wait = 0, self._options.first_wait_s
        while failures < self._options.attempts:
            before = self._done()
            try:
                if await self._session(peer):
                    return
            except _LiedError as lie:
                logger.info("source %s of %s is dropped: %s", peer, self._artifact.hex()[:12], lie)
                self._refusals.append(OpenLoraError(ErrorCode.BAD_CHUNK, "a source sent false data"))
                return
            except TimeoutError:
                self._refusals.append(OpenLoraError(ErrorCode.NODE_LOST, "a source sent nothing in time"))
            except OpenLoraError as error:
                self._refusals.append(error)
                if error.code not in (ErrorCode.NODE_LOST, ErrorCode.RATE_LIMITED, ErrorCode.BUSY):
                    return
                wait = max(wait, (error.retry_after_ms or 0) / 1000)
                if wait > self._options.longest_wait_s:
                    return
            except Exception:
                logger.exception("fetching from a source failed")
                self._stop(OpenLoraError(ErrorCode.INTERNAL))
                return
            else:
                continue
            if self._done() > before:
                failures, wait = 0, self._options.first_wait_s
            failures += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, self._options.longest_wait_s)

    async def _session(self, peer: str) -> bool:
        """One session with a source: True when nothing is missing, False to begin another. Raises what ended it."""
        async with asyncio.timeout(self._options.open_s):
            session = await self._open(peer)
        try:
            if self._plan is None:
                await self._ask_manifest(session)
            speed: float | None = None
            while not self._is_complete():
                assert self._plan is not None
                claim = self._plan.claim(peer, claim_size(speed))
                if claim is None:
                    await self._changed.next()  # nothing to do until another source is lost
                    continue
                began = time.monotonic()
                try:
                    whole = await self._take(session, peer, claim)
                finally:
                    self._plan.release(peer)
                    self._changed.fire()
                if not whole:
                    return False  # nobody needs the rest of that answer: a new session does not have to wait for it
                speed = claim.count / max(1e-6, time.monotonic() - began)
        except _LiedError:
            session.charge(Fault.LIED)
            raise
        finally:
            session.abort()
        return True

    async def _take(self, session: Session[ArtifactMessage], peer: str, claim: Claim) -> bool:
        """Ask for a range and keep what comes; False when the rest became useless meanwhile."""
        assert self._plan is not None
        assert self._partial is not None
        asked = GetChunks(artifact=self._artifact, file=claim.file, first=claim.first, count=claim.count)
        await session.send(asked)
        for index in range(claim.first, claim.first + claim.count):
            message = await self._receive(session)
            if not isinstance(message, Chunk) or (message.file, message.index) != (claim.file, index):
                raise _LiedError("it sent another chunk than the next")
            if self._plan.wants(claim.file, index):
                try:
                    await self._store.keep(self._partial, claim.file, index, message.data, message.proof)
                except ProtocolError as error:
                    raise _LiedError(error.message) from None
                except OpenLoraError as error:
                    self._stop(error)
                    raise
                self._plan.arrived(peer, claim.file, index)
                self._tell()
            if index + 1 < claim.first + claim.count and not self._plan.is_useful(peer):
                return False
        return True

    async def _ask_manifest(self, session: Session[ArtifactMessage]) -> None:
        await session.send(GetManifest(artifact=self._artifact))
        message = await self._receive(session)
        if not isinstance(message, ManifestReply) or artifact_id(message.data) != ArtifactId(self._artifact):
            raise _LiedError("it sent another manifest")
        await self._begin(message.data)

    async def _begin(self, data: bytes) -> None:
        """The manifest is known: reserve room, see what is there already. What fails here fails for every source."""
        async with self._beginning:
            if self._partial is not None:
                return
            try:
                partial = await self._store.begin(data, limit=self._limit)
            except OpenLoraError as error:
                self._stop(error)
                raise
            self._partial = partial
            self._plan = Plan(partial.missing())
            self._tell()
            self._changed.fire()

    async def _receive(self, session: Session[ArtifactMessage]) -> ArtifactMessage:
        async with asyncio.timeout(self._options.answer_s):
            message = await session.receive()
        if message is None:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the source ended the session")
        if isinstance(message, ErrorReply):
            raise message.error()
        return message

    def _is_complete(self) -> bool:
        return self._plan is not None and len(self._plan) == 0

    def _done(self) -> int:
        return self._partial.done if self._partial is not None else 0

    def _stop(self, error: OpenLoraError) -> None:
        self._fatal = self._fatal or error
        self._changed.fire()

    def _tell(self) -> None:
        assert self._partial is not None
        for watcher in list(self._watchers):
            watcher(self._partial.done, self._partial.size)

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
