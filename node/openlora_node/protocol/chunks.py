"""Chunk trees: a file's content as a root over 256 KiB chunks, so that a wrong chunk is caught when it arrives.

The tree is RFC 9162's Merkle tree over SHA-256 (leaf prefix 0x00, node prefix 0x01): a chunk's place is part of what is
proven, and no chunk can pass for an inner node. An empty file is one empty chunk. The number of chunks follows from
the size, which stands beside the root in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO

from .errors import ErrorCode, ProtocolError

CHUNK_SIZE = 256 * 1024


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has; never 0."""
    return max(1, -(-size // CHUNK_SIZE))


def chunk_length(size: int, index: int) -> int:
    """Bytes in chunk `index` of a file of `size` bytes. Raises BAD_CHUNK for an index outside the file."""
    if not 0 <= index < chunk_count(size):
        raise ProtocolError(ErrorCode.BAD_CHUNK, "the file has no chunk of that index")
    return min(CHUNK_SIZE, size - index * CHUNK_SIZE)


def chunk_hash(chunk: bytes) -> bytes:
    """SHA-256 of 0x00 ‖ chunk."""
    return sha256(b"\x00" + chunk).digest()


def hash_chunks(file: BinaryIO) -> tuple[int, list[bytes]]:
    """Read a file to its end: its size and its chunk hashes."""
    size, hashes = 0, []
    while chunk := file.read(CHUNK_SIZE):
        size += len(chunk)
        hashes.append(chunk_hash(chunk))
    return size, hashes or [chunk_hash(b"")]


class ChunkTree:
    """All levels of a chunk tree, for whoever holds the file: gives the root and each chunk's proof."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        if not hashes:
            raise ProtocolError(ErrorCode.MALFORMED, "a chunk tree has at least one chunk")
        self._levels = [list(hashes)]
        while len(level := self._levels[-1]) > 1:
            parents = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
            self._levels.append(parents + level[len(parents) * 2 :])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._levels[-1][0]

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes from chunk `index` up; a level without a sibling adds none. Raises BAD_CHUNK outside."""
        if not 0 <= index < len(self._levels[0]):
            raise ProtocolError(ErrorCode.BAD_CHUNK, "the file has no chunk of that index")
        siblings = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                siblings.append(level[index ^ 1])
            index >>= 1
        return tuple(siblings)


def verify_chunk(root: bytes, size: int, index: int, chunk: bytes, proof: Sequence[bytes]) -> bytes:
    """The chunk's hash. Raises BAD_CHUNK unless `chunk` is chunk `index` of the file with this root and size."""
    if len(chunk) != chunk_length(size, index):
        raise ProtocolError(ErrorCode.BAD_CHUNK, "the chunk has the wrong length")
    if any(len(sibling) != 32 for sibling in proof):
        raise ProtocolError(ErrorCode.BAD_CHUNK, "a proof is made of 32-byte hashes")
    node = leaf = chunk_hash(chunk)
    siblings, count = iter(proof), chunk_count(size)
    while count > 1:
        if index ^ 1 < count:
            sibling = next(siblings, b"")
            node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index, count = index >> 1, (count + 1) >> 1
    if node != root or next(siblings, None) is not None:
        raise ProtocolError(ErrorCode.BAD_CHUNK)
    return leaf


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()
