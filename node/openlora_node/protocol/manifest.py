"""Artifact manifests and their ids: what a base model, an adapter or a dataset is made of, in canonical JSON.

The id of an artifact is the SHA-256 of its manifest's canonical bytes, so a name can move but an id cannot. A manifest
that is not canonical, or names a file that could leave its directory, does not parse. Source of the form: RFC 8785,
restricted to integers (no floats, no null), so that every language writes the same bytes.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any

import msgspec

from .chunks import CHUNK_SIZE
from .errors import ErrorCode, ProtocolError
from .ids import ArtifactId, format_artifact_id, parse_artifact_id

MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 4096
MAX_FILE_BYTES = 1 << 42
MAX_DEPTH = 8
MAX_PATH_BYTES = 255
MAX_SEGMENTS = 16
MAX_DATASETS = 16
"""Of an adapter: a receipt names each."""
_MAX_INTEGER = (1 << 53) - 1
_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+=-]*[A-Za-z0-9_+=-])?", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: a relative path, its size in bytes, the root of its chunk tree as 64 lower-case hex."""

    path: str
    root: str
    size: int

    def __post_init__(self) -> None:
        check_path(self.path)
        if not _HEX.fullmatch(self.root):
            raise _refuse("a file's root is 64 lower-case hex")
        if not 0 <= self.size <= MAX_FILE_BYTES:
            raise _refuse(f"a file has 0 to {MAX_FILE_BYTES} bytes")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all kinds share. `config` holds JSON without floats and null; fractions are decimal strings."""

    config: dict[str, Any]
    files: tuple[FileEntry, ...]
    chunk_size: int = CHUNK_SIZE
    version: int = MANIFEST_VERSION

    def __post_init__(self) -> None:
        if type(self) is Manifest:
            raise _refuse("a manifest is that of a base, an adapter, a dataset or a credits table")
        if self.version != MANIFEST_VERSION or self.chunk_size != CHUNK_SIZE:
            raise _refuse(f"this software reads manifest version {MANIFEST_VERSION} with {CHUNK_SIZE}-byte chunks")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise _refuse(f"a manifest names 1 to {MAX_FILES} files")
        _check_tree([entry.path for entry in self.files])
        _check_json(self.config, 1)

    def encode(self) -> bytes:
        """The canonical bytes. Raises BAD_MANIFEST beyond 1 MiB."""
        data = canonical_json(msgspec.to_builtins(self))
        if len(data) > MAX_MANIFEST_BYTES:
            raise _refuse(f"a manifest is at most {MAX_MANIFEST_BYTES} bytes")
        return data

    @property
    def id(self) -> ArtifactId:
        """SHA-256 of the canonical bytes."""
        return artifact_id(self.encode())


class BaseManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="base"):
    """A base model with the tokenizer and chat template that make its token counts checkable."""

    tokenizer: str
    """SHA-256 of the tokenizer file (tokenizer.json), 64 lower-case hex."""
    chat_template: str
    """SHA-256 of the chat template's UTF-8 text, 64 lower-case hex; of no bytes when the model has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _HEX.fullmatch(self.tokenizer) or not _HEX.fullmatch(self.chat_template):
            raise _refuse("tokenizer and chat_template are SHA-256 digests of 64 lower-case hex")


class AdapterManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adapter"):
    """A LoRA adapter, the base that it fits, and the dataset versions that it was trained on or declares."""

    base: str
    datasets: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_artifact_id(self.base)
        for dataset in self.datasets:
            parse_artifact_id(dataset)
        if list(self.datasets) != sorted(set(self.datasets)) or len(self.datasets) > MAX_DATASETS:
            raise _refuse(f"datasets stand in ascending order, each once, at most {MAX_DATASETS}")
        _check_json(self.recipe, 1)


class DatasetManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dataset"):
    """A dataset version: canonical JSONL, the root of its contributors' share table, the version that it extends."""

    shares_root: str
    previous: str = ""
    """Artifact id of the version that this one extends; empty for the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _HEX.fullmatch(self.shares_root):
            raise _refuse("shares_root is 64 lower-case hex")
        if self.previous:
            parse_artifact_id(self.previous)


class CreditsManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="credits"):
    """What a node credits a dataset's contributors: the leaves behind a root that it posted, for anyone to fetch."""

    node: str
    """Node id, 64 lower-case hex."""
    dataset: str
    epoch: int
    root: str
    """Merkle root over (contributor, cumulative wei), 64 lower-case hex."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _HEX.fullmatch(self.node) or not _HEX.fullmatch(self.root):
            raise _refuse("node and root are 64 lower-case hex")
        if not 0 <= self.epoch <= _MAX_INTEGER:
            raise _refuse("an epoch is a number from 0 on")
        parse_artifact_id(self.dataset)


AnyManifest = BaseManifest | AdapterManifest | DatasetManifest | CreditsManifest
_decoder: msgspec.json.Decoder[AnyManifest] = msgspec.json.Decoder(AnyManifest)


def decode_manifest(data: bytes, expected: ArtifactId | None = None) -> AnyManifest:
    """Parse canonical manifest bytes, checking them against `expected` first.

    Raises ProtocolError BAD_MANIFEST (or BAD_ID for an id inside it) and nothing else.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _refuse(f"a manifest is at most {MAX_MANIFEST_BYTES} bytes")
    if expected is not None and artifact_id(data) != expected:
        raise _refuse(f"these bytes are not the manifest of {format_artifact_id(expected)}")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refuse("the manifest does not parse") from None
    if manifest.encode() != data:
        raise _refuse("the manifest is not canonical: sorted keys, no spaces, no defaults left out")
    return manifest


def artifact_id(manifest: bytes) -> ArtifactId:
    """SHA-256 of canonical manifest bytes."""
    return ArtifactId(sha256(manifest).digest())


def canonical_json(value: Any) -> bytes:
    """RFC 8785 for text, integers, booleans, lists and objects: keys sorted by UTF-16, no spaces, UTF-8."""
    _check_json(value)
    try:
        return json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise _refuse("text has no lone surrogates") from None


def check_path(path: str) -> None:
    """Refuse every file name that could leave its directory or read as an option.

    Allowed: 1 to 16 segments of ASCII letters, digits and `._+=-`, beginning with a letter, a digit or `_`, not ending
    with `.`, joined by `/`.
    """
    segments = path.split("/")
    if len(path) > MAX_PATH_BYTES or len(segments) > MAX_SEGMENTS or not all(map(_SEGMENT.fullmatch, segments)):
        raise _refuse("a file name is a relative path of letters, digits and ._+=- without dots at either end")


def _check_tree(paths: list[str]) -> None:
    if paths != sorted(paths):
        raise _refuse("files stand in ascending order of their paths")
    folded = [path.lower() for path in paths]
    if len(set(folded)) != len(folded):
        raise _refuse("two files have one name (upper and lower case count as the same)")
    names = set(folded)
    parents = {
        "/".join(parts[:depth]) for path in folded for parts in [path.split("/")] for depth in range(1, len(parts))
    }
    if parents & names:
        raise _refuse("a file name is also the directory of another")


def _check_json(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _refuse(f"values nest at most {MAX_DEPTH} deep")
    match value:
        case bool() | str():
            return
        case int():
            if abs(value) > _MAX_INTEGER:
                raise _refuse("integers are at most 2^53 - 1; write larger ones as decimal strings")
        case list() | tuple():
            for item in value:
                _check_json(item, depth + 1)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise _refuse("keys are text")
                _check_json(item, depth + 1)
        case _:
            raise _refuse("values are text, integers, booleans, lists and objects; write fractions as decimal strings")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _sorted(value[key]) for key in sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        }
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, message)
