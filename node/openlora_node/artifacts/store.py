"""The artifact store: adapters, bases and datasets by content, complete or not there, within a bounded space.

One process at a time may evict and delete; others may open the store beside it, read, and add, because an artifact
appears by one rename. Blocking work runs in two threads of the store's own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from threading import Event
from typing import Self, TypeVar

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.manifest import MAX_MANIFEST_BYTES, AnyManifest, artifact_id, decode_manifest
from .contents import Kind, check_contents, content_size, footprint
from .describing import About
from .index import Entry, Index
from .layout import (
    CHUNKS,
    MANIFEST,
    Layout,
    lock_file,
    lock_folder,
    open_regular,
    read_exactly,
    seal,
    storage_errors,
    sync,
    write_new,
)
from .packing import Package, Packed
from .partial import Partial, Progress, check_weights
from .reading import Piece, Reader
from .space import KEEP_FREE, Collected, Space, Usage
from .trees import TreeCache
from .verifying import check_artifact, withdraw

T = TypeVar("T")

WORKERS = 2
TEND_S = 3_600.0

logger = logging.getLogger(__name__)


class ArtifactStore:
    """A store that is open. Look-ups never wait for the disk longer than a stat; `async` methods do the rest."""

    def __init__(
        self,
        layout: Layout,
        cache_size: int,
        lock: int | None,
        *,
        keep_free: int = KEEP_FREE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._lock = lock
        self._clock = clock
        self._index = Index(layout, clock)
        self._trees = TreeCache()
        self._space = Space(
            layout,
            self._index,
            self._trees,
            cache_size=cache_size,
            keep_free=keep_free,
            evicts=lock is not None,
            clock=clock,
        )
        self._threads = ThreadPoolExecutor(WORKERS, "artifacts")
        self._closed = False

    def __repr__(self) -> str:
        return f"ArtifactStore({len(self._index.entries())} artifacts, {'writer' if self.is_writer else 'guest'})"

    @classmethod
    def open(
        cls,
        root: Path,
        cache_size: int,
        *,
        beside: bool = False,
        keep_free: int = KEEP_FREE,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the store below `root`; `cache_size` and `keep_free` in bytes. `beside`: as a guest of its writer.

        Raises DATADIR_LOCKED while another process is the writer, STORAGE_READ_ONLY, STORAGE_FULL, STORAGE_FAILED.
        """
        layout = Layout(root)
        layout.create()
        store = cls(layout, cache_size, None if beside else lock_file(root / ".lock"), keep_free=keep_free, clock=clock)
        try:
            with storage_errors():
                if store.is_writer:
                    for entry in list(layout.trash.iterdir()):
                        layout.discard(entry)
                store._index.refresh()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of the store. Safe to repeat; what its threads are doing is waited for."""
        if not self._closed:
            self._closed = True
            self._threads.shutdown(wait=True, cancel_futures=True)
            if self._lock is not None:
                os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_writer(self) -> bool:
        """Whether this process may evict and delete."""
        return self._lock is not None

    # Look-ups.

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """The manifest of a complete artifact."""
        return self._index.manifest(artifact)

    def entry(self, artifact: bytes) -> Entry | None:
        """Kind and sizes of a complete artifact."""
        return self._index.get(artifact)

    def folder(self, artifact: bytes) -> Path | None:
        """Where a complete artifact's files lie. Counts as a use."""
        if self._index.get(artifact) is None:
            return None
        self._index.touch(artifact)
        return self._layout.artifact(artifact)

    def ids(self, kind: Kind | str | None = None) -> frozenset[bytes]:
        """Complete artifacts, those that other processes added included."""
        return frozenset(entry.artifact for entry in self.entries() if kind is None or entry.kind == kind)

    def entries(self) -> tuple[Entry, ...]:
        """All complete artifacts."""
        with storage_errors():
            self._index.refresh()
        return self._index.entries()

    def last_used(self, artifact: bytes) -> float:
        """Unix seconds of the last use."""
        return self._index.last_used(artifact)

    def usage(self) -> Usage:
        """How full the store is."""
        with storage_errors():
            self._index.refresh()
            return self._space.usage()

    # Holding on.

    @contextmanager
    def hold(self, artifact: bytes) -> Iterator[Path]:
        """The folder of an artifact that is neither evicted nor removed meanwhile. Raises NOT_FOUND."""
        if not self._space.take(artifact):
            raise OpenLoraError(ErrorCode.NOT_FOUND)
        try:
            self._index.touch(artifact)
            yield self._layout.artifact(artifact)
        finally:
            self._space.release(artifact)

    def pin(self, artifact: bytes) -> None:
        """Never evict this one, across restarts; it may still be on its way here. Raises STORAGE_FULL, …"""
        self._space.pin(artifact)

    def unpin(self, artifact: bytes) -> None:
        """Let it be evicted again."""
        self._space.unpin(artifact)

    def pinned(self) -> frozenset[bytes]:
        """All pins, of artifacts that are not here as well."""
        return self._space.pinned()

    def remove(self, artifact: bytes) -> None:
        """Delete an artifact. Raises NOT_FOUND, BUSY while it is held or pinned, DATADIR_LOCKED for a guest."""
        self._must_write()
        with storage_errors():
            if self._index.get(artifact) is None:
                raise OpenLoraError(ErrorCode.NOT_FOUND)
            if artifact in self._space.pinned():
                raise OpenLoraError(ErrorCode.BUSY, "the artifact is pinned: unpin it first")
            if not self._space.delete(artifact):
                raise OpenLoraError(ErrorCode.BUSY, "the artifact is in use: try again later", retry_after_ms=5000)

    # Work on the disk.

    async def add_folder(
        self,
        path: Path,
        kind: Kind | str,
        about: About | None = None,
        *,
        pin: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """Copy a folder (or a dataset's file) into the store; its artifact id. Source and copy share nothing.

        Raises NOT_FOUND, BAD_MANIFEST saying what the kind lacks or may not hold, STORAGE_FULL, STORAGE_READ_ONLY,
        STORAGE_FAILED. After an error nothing is left behind.
        """
        return (await self.publish(path, kind, about, pin=pin, progress=progress))[0]

    async def publish(
        self,
        path: Path,
        kind: Kind | str,
        about: About | None = None,
        *,
        pin: bool = False,
        follow_links: bool = False,
        progress: Progress | None = None,
    ) -> tuple[bytes, Packed]:
        """As `add_folder`, with the manifest and what of the folder was left out."""
        stop = Event()

        def work() -> tuple[bytes, Packed]:
            with Package(path, Kind(kind), about or About(), follow_links=follow_links) as package:
                return self._import(package, pin, _stoppable(progress, stop))

        return await self._work(work, stop=stop)

    async def describe(
        self, path: Path, kind: Kind | str, about: About | None = None, *, progress: Progress | None = None
    ) -> Packed:
        """The manifest that a folder would get. Nothing is copied, and links are followed. Raises as `add_folder`."""
        stop = Event()

        def work() -> Packed:
            with Package(path, Kind(kind), about or About(), follow_links=True) as package:
                return package.read(None, _stoppable(progress, stop))

        return await self._work(work, stop=stop)

    async def begin(self, data: bytes, *, limit: int | None = None, progress: Progress | None = None) -> Partial:
        """Begin or take up a download. `data`: the canonical manifest; `limit`: most bytes of files that may come.

        Raises BAD_MANIFEST, UNSUPPORTED beyond the limit, STORAGE_FULL when no eviction could make enough room, BUSY
        while another task or process downloads it. The caller gives it to `finish`, `leave` or `discard`.
        """
        manifest = decode_manifest(data)
        check_contents(manifest)
        if limit is not None and content_size(manifest) > limit:
            raise OpenLoraError(
                ErrorCode.UNSUPPORTED, f"the artifact has {content_size(manifest)} bytes, {limit} are allowed here"
            )
        stop = Event()
        return await self._work(
            lambda: self._begin(manifest, data, _stoppable(progress, stop)), stop=stop, undo=self._end
        )

    def begun(self, artifact: bytes) -> bytes | None:
        """The manifest's bytes of a download that an earlier process left. Reads the disk."""
        try:
            with open_regular(self._layout.partial(artifact) / MANIFEST, os.O_RDONLY) as descriptor:
                data = read_exactly(descriptor, MAX_MANIFEST_BYTES + 1, 0)
        except OSError:
            return None
        return data if artifact_id(data) == artifact else None

    async def keep(self, partial: Partial, file: int, index: int, data: bytes, proof: tuple[bytes, ...]) -> None:
        """`Partial.write`, in a thread of the store."""
        await self._work(lambda: partial.write(file, index, data, proof))

    async def finish(self, partial: Partial) -> Path:
        """Put a complete download in its place: checked, flushed, read-only, by one rename.

        Raises BAD_CHUNK while something is missing, BAD_MANIFEST for false safetensors, STORAGE_FULL, ….
        """
        return await self._work(lambda: self._finish(partial))

    def leave(self, partial: Partial) -> None:
        """Let go of a download that is not complete: what came stays for the next try. Safe to repeat."""
        self._end(partial)

    async def discard(self, partial: Partial) -> None:
        """Throw a download away."""

        def work() -> None:
            with storage_errors():
                self._layout.discard(partial.folder)
            self._end(partial)

        await self._work(work)

    async def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
        """Chunks with their proofs, for sending: at most 2 MiB are read ahead. The artifact is held meanwhile.

        Raises NOT_FOUND, MALFORMED for a place that the file does not have, STORAGE_FAILED when a chunk on disk is
        not what it was: better no answer than a wrong one.
        """
        manifest = self.manifest(artifact)
        if manifest is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND)
        with self.hold(artifact) as folder:
            source = Reader(folder, artifact, manifest, file, first, count, self._trees)
            async with aclosing(source.pieces(self._work)) as pieces:
                async for piece in pieces:
                    yield piece

    async def verify(self, artifact: bytes, progress: Progress | None = None) -> tuple[str, ...]:
        """Read everything again: the paths that are damaged. The writer takes a damaged artifact out of use.

        What is good of it stays as a download to be completed. Raises NOT_FOUND, STORAGE_FAILED.
        """
        manifest, stop = self.manifest(artifact), Event()
        if manifest is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND)

        def work() -> tuple[str, ...]:
            with storage_errors():
                found = check_artifact(self._layout.artifact(artifact), manifest, _stoppable(progress, stop))
                if found.damaged and self.is_writer:
                    self._space.take_out(artifact, lambda: withdraw(self._layout, artifact, found.kept))
            return found.damaged

        return await self._work(work, stop=stop)

    async def gc(self) -> Collected:
        """Remove what nothing needs: remains of crashes, forgotten downloads, what exceeds the allowed space.

        Raises DATADIR_LOCKED for a guest, STORAGE_FAILED.
        """
        self._must_write()
        return await self._work(self._space.collect)

    async def tend(self) -> None:
        """Collect garbage now and then, until cancelled. A disk that refuses is tried again the next time."""
        while True:
            try:
                done = await self.gc()
                if done.freed:
                    logger.info("freed %d bytes of the artifact store", done.freed)
            except OpenLoraError as error:
                logger.warning("collecting garbage of the artifact store: %s", error)
            await asyncio.sleep(TEND_S)

    # In the store's threads.

    async def _work(
        self, work: Callable[[], T], *, stop: Event | None = None, undo: Callable[[T], object] | None = None
    ) -> T:
        """Run in a thread of the store.

        A cancelled caller waits for the step under way, which may hold a file: `stop` shortens it, `undo` gets a
        result that came nevertheless.
        """
        if self._closed:
            raise OpenLoraError(ErrorCode.STORAGE_FAILED, "the artifact store is closed")
        job = self._threads.submit(work)
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            if not job.cancel():  # a thread has begun
                await asyncio.wait([done])
                if done.exception() is None and undo is not None:
                    undo(done.result())
            raise

    def _import(self, package: Package, pin: bool, progress: Progress) -> tuple[bytes, Packed]:
        folder = self._layout.fresh(self._layout.incoming)
        with storage_errors(), self._space.room_for(package.size + 4096 * (package.files + 4)):
            folder.mkdir(mode=0o700)
            lock = lock_folder(folder)
            try:
                packed = package.read(folder, progress)
                check_weights(folder, packed.manifest)
                data = packed.manifest.encode()
                write_new(folder / MANIFEST, data)
                write_new(folder / CHUNKS, packed.chunks)
                artifact = artifact_id(data)
                if pin:
                    self.pin(artifact)
                self._place(folder, artifact)
            finally:
                self._layout.discard(folder)
                if lock is not None:
                    os.close(lock)
        return artifact, packed

    def _begin(self, manifest: AnyManifest, data: bytes, progress: Progress) -> Partial:
        artifact = artifact_id(data)
        self._space.begin(artifact, footprint(manifest))
        try:
            return Partial.open(
                self._layout.partial(artifact), data, progress, lambda left: self._space.grow(artifact, left)
            )
        except BaseException:
            self._space.end(artifact)
            raise

    def _end(self, partial: Partial) -> None:
        self._space.end(partial.artifact)
        partial.close()

    def _finish(self, partial: Partial) -> Path:
        partial.check()
        self._space.grow(partial.artifact, 0)
        with storage_errors():
            self._place(partial.folder, partial.artifact)
            self._layout.discard(partial.folder)  # only there if another process was first
        self._end(partial)
        return self._layout.artifact(partial.artifact)

    def _place(self, folder: Path, artifact: bytes) -> None:
        """From here on the artifact exists; where it already does, nothing happens."""
        if self._index.get(artifact) is not None:
            return
        seal(folder)
        target = self._layout.artifact(artifact)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        now = self._clock()
        os.utime(folder, (now, now))
        with self._space.lock:
            if artifact in self._index.broken and self.is_writer:
                self._layout.discard(target)
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                return
            target.chmod(0o555)
            sync(target.parent)
            self._index.add(artifact)

    def _must_write(self) -> None:
        if not self.is_writer:
            raise OpenLoraError(ErrorCode.DATADIR_LOCKED, "another process is the writer of this artifact store")


def _stoppable(progress: Progress | None, stop: Event) -> Progress:
    def told(done: int, size: int) -> None:
        if stop.is_set():
            raise OpenLoraError(ErrorCode.CANCELLED, "the work was cancelled")
        if progress is not None:
            progress(done, size)

    return told
