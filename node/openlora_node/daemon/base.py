"""The base model: its artifact id and where its files lie. A folder's id is computed once and kept until it changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id, parse_artifact_id
from ..protocol.manifest import AnyManifest

CACHE_NAME = "base.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model. `folder` is None where its files are somewhere that only the engine sees."""

    artifact: bytes
    folder: Path | None = None


class _Packed(Protocol):
    @property
    def manifest(self) -> AnyManifest: ...


class Describes(Protocol):
    """The artifact store, as far as a base model needs it."""

    async def describe(self, path: Path, kind: str) -> _Packed:
        """The manifest that a folder would get."""
        ...

    def folder(self, artifact: bytes) -> Path | None:
        """Where a complete artifact lies."""
        ...


async def find_base(
    model: str, store: Describes, cache: Path, fetch: Callable[[bytes], Awaitable[Path]] | None = None
) -> Base:
    """The base that an engine's `model` names: a folder, or an artifact id, which is fetched where it is not here.

    Raises CONFIG_INVALID where there is no such folder, NOT_FOUND where nobody has it, BAD_MANIFEST, STORAGE_*.
    """
    if model.startswith("sha256:"):
        artifact = bytes(parse_artifact_id(model))
        folder = store.folder(artifact)
        if folder is None and fetch is not None:
            folder = await fetch(artifact)
        return Base(artifact, folder)
    folder = Path(model)
    stamp = _stamp(folder)
    if (known := _remembered(cache, stamp)) is not None:
        return Base(known, folder)
    logger.info("computing the artifact id of the base model")
    artifact = bytes((await store.describe(folder, "base")).manifest.id)
    logger.info("the base model is %s", format_artifact_id(artifact))
    _remember(cache, stamp, artifact)
    return Base(artifact, folder)


def _stamp(folder: Path) -> str:
    """What changes when a file of the folder does: names, sizes, times. Raises CONFIG_INVALID."""
    digest = hashlib.sha256(os.fsencode(folder.absolute()))
    try:
        for path in sorted(folder.rglob("*")):
            status = path.stat()
            digest.update(
                f"\0{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}".encode()
            )
    except OSError:
        folder = Path()
    if not (folder / "config.json").is_file():
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID,
            f"{folder} is no folder of a model, which holds a config.json: correct the engine's key `model`",
        )
    return digest.hexdigest()


def _remembered(cache: Path, stamp: str) -> bytes | None:
    try:
        held = json.loads(cache.read_text("utf-8"))
        return bytes(parse_artifact_id(held["artifact"])) if held["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError, OpenLoraError):
        return None


def _remember(cache: Path, stamp: str, artifact: bytes) -> None:
    fresh = cache.with_name(f".{cache.name}.fresh")
    fresh.write_text(json.dumps({"stamp": stamp, "artifact": format_artifact_id(artifact)}), "utf-8")
    fresh.replace(cache)
