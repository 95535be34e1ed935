"""A base's tokenizer from a node that serves it: proven chunk by chunk, kept, asked of another where one lies."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from openlora_node.gateway.names import BaseName, Names
from openlora_node.gateway.tokenizer_fetch import FetchedTokenizers
from openlora_node.gateway.tokenizers import NamedFolders, Tokenizers
from openlora_node.openai import parse_body
from openlora_node.protocol.chunks import CHUNK_SIZE, ChunkTree, hash_chunks
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.manifest import AdapterManifest, BaseManifest, FileEntry, Manifest
from openlora_node.protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from support.gateway_world import TEMPLATE, tokenizer

CONTENTS = {
    "chat_template.jinja": TEMPLATE.encode(),
    "model.safetensors": b"\0" * 10,
    "tokenizer.json": tokenizer().to_str().encode() + b" " * CHUNK_SIZE,
}


def entries() -> tuple[FileEntry, ...]:
    made = []
    for path, content in CONTENTS.items():
        size, hashes = hash_chunks(io.BytesIO(content))
        made.append(FileEntry(path=path, root=ChunkTree(hashes).root.hex(), size=size))
    return tuple(made)


BASE_MANIFEST = BaseManifest(
    config={},
    files=entries(),
    tokenizer=hashlib.sha256(CONTENTS["tokenizer.json"]).hexdigest(),
    chat_template=hashlib.sha256(CONTENTS["chat_template.jinja"]).hexdigest(),
)


class Library:
    """A node's artifact session, which may lie."""

    def __init__(self, manifest: Manifest, tamper: Callable[[Chunk], Chunk | ErrorReply] = lambda chunk: chunk) -> None:
        self._manifest = manifest
        self._tamper = tamper
        self._replies: list[ArtifactMessage] = []
        self.asked: list[str] = []
        self.closed = False

    async def send(self, message: ArtifactMessage) -> None:
        if isinstance(message, GetManifest):
            self._replies.append(ManifestReply(data=self._manifest.encode()))
        elif isinstance(message, GetChunks):
            path = list(CONTENTS)[message.file]
            self.asked.append(path)
            _, hashes = hash_chunks(io.BytesIO(CONTENTS[path]))
            tree = ChunkTree(hashes)
            for index in range(message.first, message.first + message.count):
                data = CONTENTS[path][index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]
                self._replies.append(
                    self._tamper(Chunk(file=message.file, index=index, data=data, proof=tree.proof(index)))
                )

    async def receive(self) -> ArtifactMessage | None:
        return self._replies.pop(0) if self._replies else None

    async def close(self) -> None:
        self.closed = True


def source(folder: Path, *libraries: Library) -> FetchedTokenizers:
    nodes = {bytes([index]) * 32: library for index, library in enumerate(libraries)}

    async def visit(node: bytes) -> Library:
        return nodes[node]

    async def serving(_base: bytes) -> list[bytes]:
        return list(nodes)

    return FetchedTokenizers(folder, visit, serving)


async def test_nothing_of_a_base_that_the_payer_did_not_choose_is_fetched_or_run(tmp_path: Path) -> None:
    library = Library(BASE_MANIFEST)
    fetched = source(tmp_path, library)
    fetched._trusted = Names({}, {}).trusts
    with pytest.raises(OpenLoraError, match="if you trust who published it") as refused:
        await Tokenizers(fetched).counter(BASE_MANIFEST.id)
    assert refused.value.code is ErrorCode.MODEL_NOT_FOUND
    assert not library.asked
    assert Names({"tiny": BaseName("tiny", BASE_MANIFEST.id, None)}, {}).trusts(BASE_MANIFEST.id)


async def test_only_the_tokenizer_is_fetched_and_then_kept(tmp_path: Path) -> None:
    library = Library(BASE_MANIFEST)
    tokenizers = Tokenizers(source(tmp_path, library))
    counter = await tokenizers.counter(BASE_MANIFEST.id)
    assert await counter.count(parse_body(b'{"model":"m","prompt":"the quick"}', 1_000)) > 0
    assert set(library.asked) == {"chat_template.jinja", "tokenizer.json"}
    assert library.closed
    # Another life finds it on the disk, with no node at all.
    again = Tokenizers(source(tmp_path))
    assert await again.counter(BASE_MANIFEST.id)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda chunk: Chunk(file=chunk.file, index=chunk.index, data=chunk.data[:-1] + b"x", proof=chunk.proof),
        lambda chunk: Chunk(file=chunk.file, index=chunk.index + 1, data=chunk.data, proof=chunk.proof),
        lambda chunk: Chunk(file=chunk.file, index=chunk.index, data=chunk.data, proof=(bytes(32), *chunk.proof)),
        lambda chunk: ErrorReply(code="ACCESS_DENIED", message="no"),
    ],
    ids=["byte", "index", "proof", "refusal"],
)
async def test_a_node_that_lies_is_passed_over(tmp_path: Path, tamper: Callable[[Chunk], Chunk | ErrorReply]) -> None:
    liar, honest = Library(BASE_MANIFEST, tamper), Library(BASE_MANIFEST)
    assert await Tokenizers(source(tmp_path / "a", liar, honest)).counter(BASE_MANIFEST.id)
    with pytest.raises(OpenLoraError) as caught:
        await Tokenizers(source(tmp_path / "b", Library(BASE_MANIFEST, tamper))).counter(BASE_MANIFEST.id)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


async def test_another_manifest_under_the_bases_id_is_refused(tmp_path: Path) -> None:
    other = BaseManifest(config={"x": 1}, files=entries(), tokenizer="00" * 32, chat_template="00" * 32)
    with pytest.raises(OpenLoraError):
        await Tokenizers(source(tmp_path, Library(other))).counter(BASE_MANIFEST.id)


async def test_an_adapters_id_is_no_base(tmp_path: Path) -> None:
    adapter = AdapterManifest(config={}, files=entries(), base=f"sha256:{'ab' * 32}", datasets=(), recipe={})
    with pytest.raises(OpenLoraError, match="not a base model"):
        await Tokenizers(source(tmp_path, Library(adapter))).counter(adapter.id)


async def test_a_named_folder_with_another_tokenizer_is_told(tmp_path: Path) -> None:
    names = Names({"tiny": BaseName("tiny", BASE_MANIFEST.id, tmp_path / "missing")})
    with pytest.raises(OpenLoraError, match="is not here") as caught:
        await Tokenizers(NamedFolders(names)).counter(BASE_MANIFEST.id)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
