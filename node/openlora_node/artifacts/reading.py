"""Chunks with their proofs, read a little ahead of whoever sends them.

The tree of a file is made once from the hashes kept beside it; each chunk is compared with its hash the first time it
is read, because a node whose disk rots would otherwise pass for a liar.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ..protocol.chunks import CHUNK_SIZE, chunk_count, chunk_hash, chunk_length
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.manifest import AnyManifest
from .layout import CHUNKS, open_regular, read_exactly, storage_errors
from .trees import HASH, FileTree, Slots, TreeCache

GROUP = 4
"""Chunks read at once; one group is sent while the next is read."""


@dataclass(frozen=True)
class Piece:
    """A chunk and the hashes that prove it."""

    index: int
    data: bytes
    proof: tuple[bytes, ...]


Work = Callable[[Callable[[], list[Piece]]], Awaitable[list[Piece]]]


class Reader:
    """A range of chunks of one file."""

    def __init__(
        self, folder: Path, artifact: bytes, manifest: AnyManifest, file: int, first: int, count: int, trees: TreeCache
    ) -> None:
        if not 0 <= file < len(manifest.files) or not 0 <= first < first + count <= chunk_count(
            manifest.files[file].size
        ):
            raise OpenLoraError(ErrorCode.MALFORMED, "the artifact has no chunks of that place")
        self._folder = folder
        self._artifact = artifact
        self._manifest = manifest
        self._file = file
        self._range = range(first, first + count)
        self._trees = trees

    async def pieces(self, work: Work) -> AsyncGenerator[Piece, None]:
        """The chunks in order. `work` runs a function in a thread."""
        groups = [self._range[start : start + GROUP] for start in range(0, len(self._range), GROUP)]
        ahead = asyncio.ensure_future(self._group(work, groups[0]))
        try:
            for later in [*groups[1:], None]:
                pieces = await ahead
                if later is not None:
                    ahead = asyncio.ensure_future(self._group(work, later))
                for piece in pieces:
                    yield piece
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _group(self, work: Work, indices: range) -> list[Piece]:
        return await work(lambda: self._read(indices))

    def _read(self, indices: range) -> list[Piece]:
        entry = self._manifest.files[self._file]
        tree = self._tree()
        pieces = []
        with storage_errors(), open_regular(self._folder / entry.path, os.O_RDONLY) as descriptor:
            for index in indices:
                data = read_exactly(descriptor, chunk_length(entry.size, index), index * CHUNK_SIZE)
                if not tree.checked[index]:
                    if chunk_hash(data) != tree.hashes[index]:
                        raise _damaged()
                    tree.checked[index] = 1
                pieces.append(Piece(index, data, tree.tree.proof(index)))
        return pieces

    def _tree(self) -> FileTree:
        held = self._trees.get(self._artifact, self._file)
        if held is None:
            slots = Slots(self._manifest)
            start = slots.slot(self._file, 0)
            with storage_errors(), open_regular(self._folder / CHUNKS, os.O_RDONLY) as descriptor:
                leaves = read_exactly(descriptor, HASH * slots.counts[self._file], HASH * start)
            if len(leaves) != HASH * slots.counts[self._file]:
                raise _damaged()
            held = FileTree([leaves[place : place + HASH] for place in range(0, len(leaves), HASH)])
            if held.tree.root.hex() != self._manifest.files[self._file].root:
                raise _damaged()
            self._trees.put(self._artifact, self._file, held)
        return held


def _damaged() -> OpenLoraError:
    return OpenLoraError(
        ErrorCode.STORAGE_FAILED, "the stored artifact is damaged: `openlora artifacts verify` says where"
    )
