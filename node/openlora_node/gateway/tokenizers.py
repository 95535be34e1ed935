"""Finds each base's tokenizer: in the folder that its name gives, among the artifacts here, else from a node.

Whatever its source, a tokenizer that is not the one of the base's manifest is refused where the manifest is known.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id
from ..protocol.manifest import BaseManifest
from .counting import PromptCounter, load_counter
from .names import Names

MAX_LOADED = 16


@dataclass(frozen=True)
class BaseFolder:
    """A folder that holds at least the tokenizer's files of a base."""

    path: Path
    manifest: BaseManifest | None = None


class Source(Protocol):
    """One place where a base's tokenizer may be."""

    async def find(self, base: bytes) -> BaseFolder | None:
        """The folder; None where this place has none. Raises what the place raises."""
        ...


class NamedFolders:
    """The folders that the names file gives."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def find(self, base: bytes) -> BaseFolder | None:
        """As Source says."""
        entry = self._names.base_of(base)
        return BaseFolder(entry.folder) if entry and entry.folder else None


class Tokenizers:
    """Counters of the bases in use, loaded once each."""

    def __init__(self, *sources: Source) -> None:
        self._sources = sources
        self._loaded: OrderedDict[bytes, PromptCounter] = OrderedDict()
        self._loading: dict[bytes, asyncio.Lock] = {}

    async def counter(self, base: bytes) -> PromptCounter:
        """The base's counter. Raises MODEL_NOT_FOUND saying how to provide one, BAD_MANIFEST for another tokenizer."""
        if found := self._loaded.get(base):
            self._loaded.move_to_end(base)
            return found
        lock = self._loading.setdefault(base, asyncio.Lock())
        async with lock:
            if base not in self._loaded:
                self._loaded[base] = await self._load(base)
                while len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loading.pop(base, None)
            return self._loaded[base]

    async def _load(self, base: bytes) -> PromptCounter:
        trouble: OpenLoraError | None = None
        for source in self._sources:
            try:
                folder = await source.find(base)
                if folder is not None:
                    return await asyncio.to_thread(load_counter, folder.path, folder.manifest)
            except OpenLoraError as error:
                trouble = error
        told = f" ({trouble.message})" if trouble else ""
        raise OpenLoraError(
            ErrorCode.MODEL_NOT_FOUND,
            f"the tokenizer of {format_artifact_id(base)[:23]}… is not here, so its prompts cannot be counted: name the"
            f" base in the names file if you trust who published it, and wait for a node that serves it{told}",
        )
