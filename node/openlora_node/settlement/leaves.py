"""Credits tables as artifacts: the leaves behind a posted root, kept and sent to whoever asks for them by their id."""

from __future__ import annotations

from io import BytesIO
from typing import Protocol

from ..artifacts import ArtifactStore
from ..artifacts.contents import CREDITS
from ..protocol.chunks import CHUNK_SIZE, ChunkTree, hash_chunks
from ..protocol.ids import format_artifact_id
from ..protocol.manifest import CreditsManifest, FileEntry
from .credits import CreditTable


class LeavesLike(Protocol):
    """Where tables are kept so that anyone can fetch them."""

    async def keep(self, node: bytes, dataset: bytes, epoch: int, table: CreditTable) -> bytes:
        """Keep a table; the id under which it is fetched. The same table again is the same id. Raises STORAGE_*."""
        ...

    async def forget(self, leaves: bytes) -> None:
        """A table that is no longer in force nor about to be."""
        ...


def pack(node: bytes, dataset: bytes, epoch: int, table: CreditTable) -> tuple[CreditsManifest, bytes, ChunkTree]:
    """The manifest, the one file's bytes, and its chunk tree."""
    data = table.encode()
    size, hashes = hash_chunks(BytesIO(data))
    tree = ChunkTree(hashes)
    manifest = CreditsManifest(
        config={},
        files=(FileEntry(path=CREDITS, root=tree.root.hex(), size=size),),
        node=node.hex(),
        dataset=format_artifact_id(dataset),
        epoch=epoch,
        root=table.root.hex(),
    )
    return manifest, data, tree


class Leaves:
    """Tables in the node's artifact store, pinned while they are needed."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    async def keep(self, node: bytes, dataset: bytes, epoch: int, table: CreditTable) -> bytes:
        """As LeavesLike says."""
        manifest, data, tree = pack(node, dataset, epoch, table)
        artifact = bytes(manifest.id)
        if self._store.entry(artifact) is None:
            partial = await self._store.begin(manifest.encode())
            try:
                for index in range(0, -(-len(data) // CHUNK_SIZE)):
                    chunk = data[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]
                    await self._store.keep(partial, 0, index, chunk, tree.proof(index))
                await self._store.finish(partial)
            except BaseException:
                self._store.leave(partial)
                raise
        self._store.pin(artifact)
        return artifact

    async def forget(self, leaves: bytes) -> None:
        """As LeavesLike says. It stays until the room is needed."""
        if self._store.entry(leaves) is not None:
            self._store.unpin(leaves)
