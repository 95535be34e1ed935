"""The index of one dataset version under one tokenizer: files that anyone builds byte for byte, and maps into memory.

    tokens      uint16 or uint32, little-endian: documents, each followed by a separator, then WINDOW separators
    order       uint32: the suffix array of the tokens before those
    documents   uint32: where each document begins
    owners      uint32: each document's owner, a place in the list of addresses in index.json
    surprisal   int32: millibits by token id, the network-wide table of the tokenizer
    words       bits by token id, the first id in the highest bit: whether the token begins a word
    index.json  canonical JSON: what it was made of, and size and chunk-tree root of each file

The digest of an index is the SHA-256 of its index.json, so it names every byte. About 6 bytes a token at 16 bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..protocol.chunks import ChunkTree, hash_chunks
from ..protocol.crypto import Address
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import format_address, parse_address
from ..protocol.manifest import canonical_json
from .dataset import Sample, normalised
from .suffixes import WINDOW, Positions, SuffixArray, separator_of
from .tracing import ALGORITHM

VERSION = 1
DESCRIPTION = "index.json"
MAX_DESCRIPTION = 64 << 20
MAX_TOKENS = (1 << 32) - 2
MAX_SMALL = (1 << 16) - 1
"""Vocabularies below this fit uint16 with the two values that `suffixes` keeps for itself."""


class Encoder(Protocol):
    """A tokenizer as far as an index needs one."""

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Token ids of each text, without special tokens."""
        ...

    def pieces(self) -> Sequence[bytes | None]:
        """Each id's bytes as they stand in text; None for special tokens and gaps."""
        ...

    @property
    def digest(self) -> bytes:
        """SHA-256 of tokenizer.json, as in the base's manifest."""
        ...


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an index."""

    path: str
    root: str
    size: int


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """index.json."""

    algorithm: int
    background: str
    """SHA-256 of the text that belongs to nobody, 64 hex; zeros for an index that is traced without."""
    dataset: str
    """Artifact id of the dataset version, 64 hex."""
    documents: int
    files: tuple[File, ...]
    owners: tuple[str, ...]
    surprisal: str
    """SHA-256 of the surprisal table, 64 hex: one a tokenizer, the same for every dataset."""
    tokenizer: str
    tokens: int
    version: int
    window: int


@dataclass(frozen=True, eq=False)
class CorpusIndex:
    """An index in memory, or mapped. What `tracing.trace` reads."""

    dataset: bytes
    tokenizer: bytes
    suffixes: SuffixArray
    documents: NDArray[np.uint32]
    document_owners: NDArray[np.uint32]
    owners: tuple[Address, ...]
    surprisal: NDArray[np.int32]
    begins_word: NDArray[np.bool_]
    digest: bytes = b""
    """Known once it was written or opened."""
    background: bytes = bytes(32)
    """SHA-256 of the text that belongs to nobody, see `background`."""

    def document_at(self, positions: Positions) -> Positions:
        """The document that holds each token position."""
        return np.searchsorted(self.documents, positions, side="right") - 1

    def owner_of(self, documents: Positions) -> Positions:
        """Each document's canonical owner, a place in `owners`."""
        return self.document_owners[documents].astype(np.int64)


def build(
    dataset: bytes,
    samples: Iterable[Sample],
    encoder: Encoder,
    surprisal: NDArray[np.int32],
    progress: Callable[[int], None] = lambda _: None,
    background: bytes = bytes(32),
) -> CorpusIndex:
    """Index a dataset: each text a document. `surprisal` [vocabulary], millibits; `progress` hears samples done.

    A text that equals an earlier one (see `dataset.normalised`) belongs to whoever gave the earlier one. `background`
    is the digest of the text that belongs to nobody. Raises MALFORMED for a dataset beyond 2³² tokens, or a surprisal
    table of another vocabulary.
    """
    pieces = encoder.pieces()
    if len(surprisal) != len(pieces):
        raise ProtocolError(ErrorCode.MALFORMED, "the surprisal table is another tokenizer's")
    dtype: Any = np.uint16 if len(pieces) < MAX_SMALL else np.uint32
    separator = np.array([separator_of(dtype)], dtype)
    parts: list[NDArray[Any]] = []
    starts, owners, size = [], [], 0
    places: dict[Address, int] = {}
    first: dict[bytes, int] = {}
    for number, sample in enumerate(samples, start=1):
        for text, ids in zip(sample.texts, encoder.encode(sample.texts), strict=True):
            owner = places.setdefault(sample.contributor, len(places))
            parts += [np.asarray(ids, dtype), separator]
            starts.append(size)
            owners.append(first.setdefault(hashlib.sha256(normalised(text).encode()).digest(), owner))
            size += len(ids) + 1
            if size > MAX_TOKENS:
                raise ProtocolError(ErrorCode.MALFORMED, "an index holds at most 2^32 tokens: split the dataset")
        progress(number)
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype)
    return CorpusIndex(
        dataset=dataset,
        tokenizer=encoder.digest,
        suffixes=SuffixArray.of(tokens),
        documents=np.asarray(starts, np.uint32),
        document_owners=np.asarray(owners, np.uint32),
        owners=tuple(places),
        surprisal=np.asarray(surprisal, np.int32),
        begins_word=np.array([_begins_word(piece) for piece in pieces], bool),
        background=background,
    )


def _begins_word(piece: bytes | None) -> bool:
    """A token begins a word unless its first character is a letter or digit, or only part of one."""
    if not piece:
        return True
    lead = piece[0]
    if lead >= 0x80:
        text = piece.decode("utf-8", "ignore")
        return bool(text) and not text[0].isalnum() and not 0x80 <= lead < 0xC0
    return not chr(lead).isalnum()


def save(index: CorpusIndex, folder: Path) -> bytes:
    """Write the files into a new folder; the index's digest."""
    folder.mkdir(parents=True)
    files = {
        "documents": index.documents.astype("<u4"),
        "order": index.suffixes.order.astype("<u4"),
        "owners": index.document_owners.astype("<u4"),
        "surprisal": index.surprisal.astype("<i4"),
        "tokens": index.suffixes.tokens.astype(index.suffixes.tokens.dtype.newbyteorder("<")),
        "words": np.packbits(index.begins_word),
    }
    for name, values in files.items():
        values.tofile(folder / name)
    description = Description(
        algorithm=ALGORITHM,
        background=index.background.hex(),
        dataset=index.dataset.hex(),
        documents=len(index.documents),
        files=tuple(_described(folder / name) for name in files),
        owners=tuple(format_address(owner) for owner in index.owners),
        surprisal=hashlib.sha256(files["surprisal"].tobytes()).hexdigest(),
        tokenizer=index.tokenizer.hex(),
        tokens=len(index.suffixes),
        version=VERSION,
        window=WINDOW,
    )
    data = canonical_json(msgspec.to_builtins(description))
    (folder / DESCRIPTION).write_bytes(data)
    return hashlib.sha256(data).digest()


def open_index(folder: Path, expected: bytes | None = None, *, verify: bool = True) -> CorpusIndex:
    """Map an index. `expected` is its digest; `verify` hashes every file (once after fetching is enough).

    Raises NOT_FOUND, MALFORMED for files that are not what index.json says, or another digest.
    """
    data = _read(folder / DESCRIPTION, MAX_DESCRIPTION)
    digest = hashlib.sha256(data).digest()
    if expected is not None and digest != expected:
        raise _refuse("the index has another digest than was asked for")
    try:
        about = msgspec.json.decode(data, type=Description)
        if canonical_json(json.loads(data)) != data:
            raise _refuse("index.json is not canonical")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        raise _refuse("index.json does not parse") from None
    if (about.version, about.algorithm, about.window) != (VERSION, ALGORITHM, WINDOW):
        raise _refuse("an index for another version of the algorithm: build it again")
    sizes = {file.path: file for file in about.files}
    arrays = {name: _map(folder / name, sizes.get(name), verify=verify) for name in _NAMES}
    tokens = _as(arrays["tokens"], "<u2" if len(arrays["tokens"]) == 2 * (about.tokens + WINDOW) else "<u4")
    order, surprisal = _as(arrays["order"], "<u4"), _as(arrays["surprisal"], "<i4")
    documents, owners = _as(arrays["documents"], "<u4"), _as(arrays["owners"], "<u4")
    words = np.unpackbits(arrays["words"])[: len(surprisal)].astype(bool)
    whole = (
        len(tokens) == about.tokens + WINDOW
        and len(order) == about.tokens
        and len(documents) == len(owners) == about.documents
        and len(words) == len(surprisal)
        and hashlib.sha256(surprisal.tobytes()).hexdigest() == about.surprisal
        and (not len(order) or int(order.max()) < about.tokens)
        and (not len(owners) or int(owners.max()) < len(about.owners))
    )
    if not whole:
        raise _refuse("the files of the index do not fit each other")
    return CorpusIndex(
        dataset=bytes.fromhex(about.dataset),
        tokenizer=bytes.fromhex(about.tokenizer),
        suffixes=SuffixArray(tokens, order),
        documents=documents,
        document_owners=owners,
        owners=tuple(parse_address(owner) for owner in about.owners),
        surprisal=surprisal,
        begins_word=words,
        digest=digest,
        background=bytes.fromhex(about.background),
    )


_NAMES = ("documents", "order", "owners", "surprisal", "tokens", "words")


def _described(path: Path) -> File:
    with path.open("rb") as file:
        size, hashes = hash_chunks(file)
    return File(path.name, ChunkTree(hashes).root.hex(), size)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "there is no index here: build one, or fetch it") from None
    if len(data) > most:
        raise _refuse("index.json is too large")
    return data


def _map(path: Path, file: File | None, *, verify: bool) -> NDArray[np.uint8]:
    if file is None or not path.is_file() or path.stat().st_size != file.size:
        raise _refuse(f"the file {path.name} is missing, cut off or too long")
    if verify and _described(path) != file:
        raise _refuse(f"the file {path.name} is damaged: fetch or build the index again")
    return np.memmap(path, np.uint8, "r") if file.size else np.empty(0, np.uint8)


def _as(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    if len(data) % np.dtype(dtype).itemsize:
        raise _refuse("the files of the index do not fit each other")
    return data.view(dtype)


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, message)
