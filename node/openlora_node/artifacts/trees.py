"""The chunk hashes of an artifact's files, kept beside them, and the trees made of them: proofs without reading a file.

`.chunks` holds 32 bytes a chunk, files in the order of the manifest; 32 zero bytes stand for a chunk not there yet.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from threading import Lock

from ..protocol.chunks import ChunkTree, chunk_count
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.manifest import AnyManifest

HASH = 32
ABSENT = bytes(HASH)
MAX_CACHED_CHUNKS = 1 << 18
"""Of all trees together: 64 GiB of files, about 35 MB of memory."""


class Slots:
    """Where each chunk's hash stands in `.chunks`."""

    def __init__(self, manifest: AnyManifest) -> None:
        self.counts = tuple(chunk_count(entry.size) for entry in manifest.files)
        self._starts = (0, *accumulate(self.counts))

    @property
    def total(self) -> int:
        """Chunks in all."""
        return self._starts[-1]

    def slot(self, file: int, index: int) -> int:
        """The number of a chunk in all. Raises MALFORMED for one that the artifact does not have."""
        if not (0 <= file < len(self.counts) and 0 <= index < self.counts[file]):
            raise OpenLoraError(ErrorCode.MALFORMED, "the artifact has no chunk of that place")
        return self._starts[file] + index

    def hashes(self, leaves: bytes | bytearray, file: int) -> list[bytes]:
        """The chunk hashes of one file, cut from all."""
        start = self._starts[file]
        return [
            bytes(leaves[slot * HASH : slot * HASH + HASH]) for slot in range(start, start + self.counts[file])
        ]  # fmt: skip


class FileTree:
    """A file's chunk hashes and their tree; remembers which chunks on disk were seen to be what they should be."""

    def __init__(self, hashes: list[bytes]) -> None:
        self.hashes = hashes
        self.tree = ChunkTree(hashes)
        self.checked = bytearray(len(hashes))


class TreeCache:
    """Trees by (artifact, file), the least recently used forgotten. Thread-safe."""

    def __init__(self, max_chunks: int = MAX_CACHED_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._trees: OrderedDict[tuple[bytes, int], FileTree] = OrderedDict()
        self._chunks = 0
        self._lock = Lock()

    def get(self, artifact: bytes, file: int) -> FileTree | None:
        """A tree that is held."""
        with self._lock:
            tree = self._trees.get((artifact, file))
            if tree is not None:
                self._trees.move_to_end((artifact, file))
            return tree

    def put(self, artifact: bytes, file: int, tree: FileTree) -> None:
        """Hold a tree, at the cost of older ones."""
        with self._lock:
            if (artifact, file) in self._trees:
                return
            self._trees[artifact, file] = tree
            self._chunks += len(tree.hashes)
            while self._chunks > self._max_chunks and len(self._trees) > 1:
                _, old = self._trees.popitem(last=False)
                self._chunks -= len(old.hashes)

    def forget(self, artifact: bytes) -> None:
        """Drop what is held of an artifact."""
        with self._lock:
            for key in [key for key in self._trees if key[0] == artifact]:
                self._chunks -= len(self._trees.pop(key).hashes)
