"""Chunk trees: equal to RFC 9162's recursive definition; a wrong chunk, place, length or proof is caught."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol import chunks
from openlora_node.protocol.chunks import CHUNK_SIZE, ChunkTree, chunk_count, verify_chunk
from openlora_node.protocol.errors import ErrorCode, ProtocolError


def recursive_root(hashes: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1: split at the largest power of two below the count."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\x01" + recursive_root(hashes[:split]) + recursive_root(hashes[split:])).digest()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_SIZE", 4)


def tree_of(data: bytes) -> tuple[ChunkTree, list[bytes]]:
    size = chunks.CHUNK_SIZE
    parts = [data[start : start + size] for start in range(0, max(len(data), 1), size)]
    return ChunkTree([chunks.chunk_hash(part) for part in parts]), parts


@given(count=st.integers(1, 200))
def test_root_equals_rfc_9162(count: int) -> None:
    hashes = [chunks.chunk_hash(bytes((n,))) for n in range(count)]
    assert ChunkTree(hashes).root == recursive_root(hashes)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("size", [*range(40), 63, 64, 65, 127, 128, 129])
def test_every_chunk_proves_in_its_place_only(size: int) -> None:
    tree, parts = tree_of(bytes(n % 251 for n in range(size)))
    assert len(parts) == chunk_count(size)
    for index, part in enumerate(parts):
        proof = tree.proof(index)
        verify_chunk(tree.root, size, index, part, proof)
        wrong = [
            (index, part[:-1] + b"\xff" if part else b"\xff", proof),
            (index, part[:-1], proof) if part else (index, b"\0", proof),
            (index, part, (*proof, bytes(32))),
            (index, part, (*proof[:-1], b"".join(proof[-1:])[:31])),
            (index, part, proof[:-1]) if proof else (1, part, proof),
            (index + 1, part, proof),
            (-1, part, proof),
        ]
        for place, chunk, path in wrong:
            with pytest.raises(ProtocolError) as caught:
                verify_chunk(tree.root, size, place, chunk, path)
            assert caught.value.code == ErrorCode.BAD_CHUNK


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
def test_files_are_read_in_chunks(size: int) -> None:
    data = b"\x5a" * size
    read, hashes = chunks.hash_chunks(BytesIO(data))
    assert read == size
    assert len(hashes) == chunk_count(size)
    assert ChunkTree(hashes).root == tree_of(data)[0].root


def test_an_empty_tree_is_refused() -> None:
    with pytest.raises(ProtocolError):
        ChunkTree([])
    with pytest.raises(ProtocolError):
        ChunkTree([bytes(32)]).proof(1)
