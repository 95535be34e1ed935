"""A download under way: what has arrived and was verified, on disk, so that it survives the process.

A chunk is kept only with its proof. What an earlier process kept is read again and compared with the hash it was kept
under; the hashes of a whole file must give the root in the manifest. So neither a crash nor a power cut nor a disk
that lies gets a wrong byte into the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Self

from ..protocol.chunks import CHUNK_SIZE, ChunkTree, chunk_hash, chunk_length, verify_chunk
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.manifest import AnyManifest, artifact_id, decode_manifest
from .contents import content_size
from .layout import (
    CHUNKS,
    MANIFEST,
    lock_folder,
    open_regular,
    read_exactly,
    storage_errors,
    sync,
    unseal,
    write_all,
    write_new,
)
from .trees import ABSENT, HASH, Slots
from .weights import check_safetensors

Progress = Callable[[int, int], object]
"""Called with bytes done and bytes in all, on whichever thread works."""
Room = Callable[[int], object]
"""Called before a proven chunk is written, with the bytes that are still to be proven. Raises STORAGE_FULL."""


class Partial:
    """One download, locked against other processes until it is closed. Methods block: call them in a worker thread."""

    def __init__(
        self, folder: Path, manifest: AnyManifest, artifact: bytes, lock: int, room: Room | None = None
    ) -> None:
        self.folder = folder
        self.artifact = artifact
        self.manifest = manifest
        self.size = content_size(manifest)
        self.done = 0
        """Bytes kept so far."""
        self._roots = [bytes.fromhex(entry.root) for entry in manifest.files]
        self._slots = Slots(manifest)
        self._leaves = bytearray(HASH * self._slots.total)
        self._counting = Lock()
        self._coming = 0
        """Bytes that are proven and about to be kept."""
        self._room = room
        self._lock: int | None = lock

    def __repr__(self) -> str:
        return f"Partial({self.artifact.hex()[:12]}, {self.done} of {self.size} bytes)"

    @classmethod
    def open(cls, folder: Path, data: bytes, progress: Progress | None = None, room: Room | None = None) -> Self:
        """Begin a download, or take up the one that lies in `folder`. `data`: the manifest's canonical bytes.

        Raises BUSY while another process downloads it, BAD_MANIFEST, STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_FAILED.
        """
        manifest = decode_manifest(data)
        with storage_errors():
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = lock_folder(folder)
            if lock is None:
                raise OpenLoraError(
                    ErrorCode.BUSY, "another process fetches this artifact: wait for it", retry_after_ms=5000
                )
            try:
                partial = cls(folder, manifest, artifact_id(data), lock, room)
                partial._prepare(data)
                partial._take_up(progress or _silent)
            except BaseException:
                os.close(lock)
                raise
        return partial

    def close(self) -> None:
        """Let go of the lock; what was kept stays. Safe to repeat."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    def has(self, file: int, index: int) -> bool:
        """Whether a chunk is kept."""
        start = self._slots.slot(file, index) * HASH
        return self._leaves[start : start + HASH] != ABSENT

    def missing(self) -> list[tuple[int, int, int]]:
        """What is still to fetch: (file, first chunk, number of chunks), in order."""
        ranges: list[tuple[int, int, int]] = []
        for file, count in enumerate(self._slots.counts):
            first = None
            for index in range(count + 1):
                wanted = index < count and not self.has(file, index)
                if wanted and first is None:
                    first = index
                elif not wanted and first is not None:
                    ranges.append((file, first, index - first))
                    first = None
        return ranges

    def write(self, file: int, index: int, data: bytes, proof: tuple[bytes, ...]) -> None:
        """Keep a chunk if it is what the manifest promises. Thread-safe for different chunks.

        Raises BAD_CHUNK for anything else, with nothing kept; MALFORMED for a place that the artifact does not have;
        STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_FAILED.
        """
        slot = self._slots.slot(file, index)
        entry = self.manifest.files[file]
        leaf = verify_chunk(self._roots[file], entry.size, index, data, proof)
        with self._counting:
            self._coming += len(data)
            left = self.size - self.done - self._coming
        try:
            if self._room is not None:
                self._room(left)
            with storage_errors():
                with open_regular(self._path(file), os.O_WRONLY | os.O_CREAT) as descriptor:
                    write_all(descriptor, data, index * CHUNK_SIZE)
                with open_regular(self.folder / CHUNKS, os.O_WRONLY) as descriptor:
                    write_all(descriptor, leaf, slot * HASH)
            with self._counting:
                if not self.has(file, index):
                    self._leaves[slot * HASH : slot * HASH + HASH] = leaf
                    self.done += len(data)
        finally:
            with self._counting:
                self._coming -= len(data)

    def check(self) -> None:
        """Refuse to be taken for complete unless every file has its root and weights are safetensors.

        Raises BAD_CHUNK while something is missing, BAD_MANIFEST for weights that are not safetensors. A file whose
        hashes do not give its root (its list of hashes was damaged) counts as missing from then on.
        """
        complete = True
        with storage_errors():
            for file, root in enumerate(self._roots):
                hashes = self._slots.hashes(self._leaves, file)
                if ABSENT in hashes:
                    complete = False
                elif (
                    ChunkTree(hashes).root != root or self._path(file).stat().st_size != self.manifest.files[file].size
                ):
                    self._forget(file)
                    complete = False
            if not complete:
                raise ProtocolError(ErrorCode.BAD_CHUNK, "the artifact is not complete")
            check_weights(self.folder, self.manifest)

    def _forget(self, file: int) -> None:
        entry, start = self.manifest.files[file], self._slots.slot(file, 0) * HASH
        with self._counting:
            for index in range(self._slots.counts[file]):
                if self.has(file, index):
                    self.done -= chunk_length(entry.size, index)
            self._leaves[start : start + HASH * self._slots.counts[file]] = bytes(HASH * self._slots.counts[file])
        self._path(file).unlink(missing_ok=True)

    def _path(self, file: int) -> Path:
        return self.folder / self.manifest.files[file].path

    def _prepare(self, data: bytes) -> None:
        unseal(self.folder)  # it may have been about to move into its place
        if _read(self.folder / MANIFEST, len(data) + 1) != data:
            write_new(self.folder / MANIFEST, data)
        for entry in self.manifest.files:
            (self.folder / entry.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_regular(self.folder / CHUNKS, os.O_RDWR | os.O_CREAT) as descriptor:
            if os.fstat(descriptor).st_size != len(self._leaves):
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, len(self._leaves))
        sync(self.folder)

    def _take_up(self, progress: Progress) -> None:
        """Trust what an earlier process kept as far as it can still be read."""
        kept = _read(self.folder / CHUNKS, len(self._leaves))
        if kept is None or not any(kept):
            return
        for file, entry in enumerate(self.manifest.files):
            try:
                with open_regular(self._path(file), os.O_RDONLY) as descriptor:
                    for index in range(self._slots.counts[file]):
                        start = self._slots.slot(file, index) * HASH
                        leaf, length = kept[start : start + HASH], chunk_length(entry.size, index)
                        if leaf == ABSENT:
                            continue
                        if chunk_hash(read_exactly(descriptor, length, index * CHUNK_SIZE)) == leaf:
                            self._leaves[start : start + HASH] = leaf
                            self.done += length
                            progress(self.done, self.size)
            except FileNotFoundError:
                continue
        with open_regular(self.folder / CHUNKS, os.O_WRONLY) as descriptor:
            write_all(descriptor, memoryview(self._leaves), 0)


def check_weights(folder: Path, manifest: AnyManifest) -> None:
    """Refuse files that are called safetensors and are not. Raises BAD_MANIFEST, OSError."""
    for entry in manifest.files:
        if entry.path.lower().endswith(".safetensors"):
            with open_regular(folder / entry.path, os.O_RDONLY) as descriptor:
                check_safetensors(descriptor, entry.size, entry.path)


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with open_regular(path, os.O_RDONLY) as descriptor:
            return read_exactly(descriptor, limit, 0)
    except FileNotFoundError:
        return None


def _silent(done: int, size: int) -> None:
    """No progress asked for."""
