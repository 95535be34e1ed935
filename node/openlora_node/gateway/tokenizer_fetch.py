"""Fetches a base's tokenizer, and nothing else of it, from a node that serves the base; every chunk is proven.

A base's id names its manifest, the manifest names the files: no node can pass off another tokenizer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..protocol.chunks import chunk_count, verify_chunk
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import ArtifactId
from ..protocol.manifest import BaseManifest, FileEntry, decode_manifest
from ..protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from .counting import FILES, MAX_FILE_BYTES, TOKENIZER
from .tokenizers import BaseFolder

ANSWER_TIMEOUT_S = 20.0
CHUNKS_AT_ONCE = 16
MAX_NODES = 4
MANIFEST_NAME = ".manifest"

logger = logging.getLogger(__name__)


class Library(Protocol):
    """A session of /openlora/artifact/1."""

    async def send(self, message: ArtifactMessage) -> None:
        """Ask."""
        ...

    async def receive(self) -> ArtifactMessage | None:
        """The next answer; None after the last."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


Visit = Callable[[bytes], Awaitable[Library]]
"""A session with a node. Raises NODE_LOST, NOT_FOUND, WRONG_NODE."""
Serving = Callable[[bytes], Awaitable[Sequence[bytes]]]
"""Nodes that serve a base."""


Trusted = Callable[[bytes], bool]
"""Whether the payer chose a base."""


class FetchedTokenizers:
    """Tokenizers kept in a folder of the gateway's, fetched when they are missing."""

    def __init__(self, folder: Path, visit: Visit, serving: Serving, trusted: Trusted = lambda _base: True) -> None:
        """`trusted`: whether a base's own files may be run here. Whoever publishes a base writes its chat template."""
        self._folder = folder
        self._trusted = trusted
        self._visit = visit
        self._serving = serving

    async def find(self, base: bytes) -> BaseFolder | None:
        """As tokenizers.Source says: from the disk, else from a node. None when no node gives it."""
        if not self._trusted(base):
            return None
        folder = self._folder / base.hex()
        if found := await asyncio.to_thread(_kept, folder, base):
            return found
        trouble: OpenLoraError | None = None
        for node in (await self._serving(base))[:MAX_NODES]:
            try:
                return await self._fetch(base, node, folder)
            except OpenLoraError as error:
                trouble = error
                logger.info("node %s does not give a tokenizer: %s", node.hex()[:8], error)
        if trouble is not None:
            raise trouble
        return None

    async def _fetch(self, base: bytes, node: bytes, folder: Path) -> BaseFolder:
        library = await self._visit(node)
        try:
            reply = await _next(library, GetManifest(artifact=base))
            if not isinstance(reply, ManifestReply):
                raise ProtocolError(ErrorCode.MALFORMED, "the node sent no manifest")
            manifest = decode_manifest(reply.data, ArtifactId(base))
            if not isinstance(manifest, BaseManifest):
                raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, "this artifact is not a base model")
            contents: dict[str, bytes] = {}
            for place, entry in enumerate(manifest.files):
                if entry.path in FILES:
                    contents[entry.path] = await _file(library, base, place, entry)
        finally:
            await library.close()
        if TOKENIZER not in contents:
            raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"this base has no {TOKENIZER}")
        await asyncio.to_thread(_keep, folder, reply.data, contents)
        return BaseFolder(folder, manifest)


async def _file(library: Library, base: bytes, place: int, entry: FileEntry) -> bytes:
    if entry.size > MAX_FILE_BYTES:
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"{entry.path} of this base is larger than any tokenizer's")
    parts: list[bytes] = []
    total = chunk_count(entry.size)
    while len(parts) < total:
        count = min(CHUNKS_AT_ONCE, total - len(parts))
        message = await _next(library, GetChunks(artifact=base, file=place, first=len(parts), count=count))
        for left in reversed(range(count)):
            if not isinstance(message, Chunk) or (message.file, message.index) != (place, len(parts)):
                raise ProtocolError(ErrorCode.BAD_CHUNK, "the node sent another chunk than the one asked for")
            verify_chunk(bytes.fromhex(entry.root), entry.size, message.index, message.data, message.proof)
            parts.append(message.data)
            if left:
                message = await _next(library, None)
    return b"".join(parts)


async def _next(library: Library, question: ArtifactMessage | None) -> ArtifactMessage:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            if question is not None:
                await library.send(question)
            reply = await library.receive()
    except TimeoutError:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the node sends no artifact") from None
    if reply is None:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the node ended the session")
    if isinstance(reply, ErrorReply):
        raise reply.error()
    return reply


def _kept(folder: Path, base: bytes) -> BaseFolder | None:
    try:
        manifest = decode_manifest((folder / MANIFEST_NAME).read_bytes(), ArtifactId(base))
    except (OSError, ProtocolError):
        return None
    return BaseFolder(folder, manifest) if isinstance(manifest, BaseManifest) else None


def _keep(folder: Path, manifest: bytes, contents: dict[str, bytes]) -> None:
    """The manifest goes last: a folder that holds it is whole."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in (*contents.items(), (MANIFEST_NAME, manifest)):
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            os.replace(partial, folder / name)  # noqa: PTH105 - one rename
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, "a tokenizer could not be kept") from None
