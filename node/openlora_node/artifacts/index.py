"""What lies in a store, held in memory and kept equal to the disk, where other processes may add artifacts too.

An artifact's folder is the record: its modification time says when it was last used, so that a restart forgets nothing
and no second file can contradict the first.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock

from ..protocol.errors import OpenLoraError
from ..protocol.ids import ArtifactId, parse_artifact_id
from ..protocol.manifest import MAX_MANIFEST_BYTES, AdapterManifest, AnyManifest, decode_manifest
from .contents import Kind, content_size, footprint, kind_of
from .layout import MANIFEST, Layout, open_regular, parse_folder_name, read_exactly

TOUCH_S = 60.0
"""How far the time of last use on disk may lag behind the one in memory."""
SETTLED_S = 2.0
"""A folder changed this recently may change again within one tick of the disk's clock: it is looked at again."""
MAX_MANIFESTS = 128


@dataclass(frozen=True)
class Entry:
    """A complete artifact. `size`: bytes of its files; `footprint`: bytes on disk."""

    artifact: bytes
    kind: Kind
    size: int
    footprint: int
    base: bytes | None = None
    """An adapter's base."""


class Index:
    """The artifacts of one store. Thread-safe; look-ups cost a dictionary's, `refresh` a few hundred stat calls."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._clock = clock
        self._lock = RLock()
        self._entries: dict[bytes, Entry] = {}
        self._used: dict[bytes, float] = {}
        self._stamped: dict[bytes, float] = {}
        self._seen: dict[str, int] = {}
        self._manifests: OrderedDict[bytes, AnyManifest] = OrderedDict()
        self.broken: set[bytes] = set()
        """Folders that hold no artifact of their name."""

    def refresh(self) -> None:
        """Take in what other processes added and forget what is gone. Raises OSError."""
        with self._lock:
            recent = (time.time() - SETTLED_S) * 1e9
            names = {entry.name for entry in os.scandir(self._layout.complete) if entry.is_dir(follow_symlinks=False)}
            for name in names | set(self._seen):
                folder = self._layout.complete / name
                try:
                    changed = folder.stat(follow_symlinks=False).st_mtime_ns
                    if self._seen.get(name) == changed:
                        continue
                    found = {parse_folder_name(entry.name) for entry in os.scandir(folder)}
                except FileNotFoundError:
                    changed, found = 0, set()
                known = {artifact for artifact in self._entries if artifact[:1].hex() == name}
                for artifact in known - found:
                    self.drop(artifact)
                for gone in [a for a in self.broken if a[:1].hex() == name and a not in found]:
                    self.broken.discard(gone)
                for new in found - known:
                    if new is not None and new[:1].hex() == name:
                        self._load(new)
                if changed and changed < recent:
                    self._seen[name] = changed
                else:
                    self._seen.pop(name, None)

    def entries(self) -> tuple[Entry, ...]:
        """All of them."""
        with self._lock:
            return tuple(self._entries.values())

    def get(self, artifact: bytes) -> Entry | None:
        """One artifact; looks on the disk when memory does not know it."""
        entry = self._entries.get(artifact)
        if entry is not None:
            return entry
        with self._lock:
            return self._entries.get(artifact) or self._load(artifact)

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """An artifact's manifest, read again when it was not used for a while."""
        with self._lock:
            manifest = self._manifests.get(artifact)
            if manifest is None and self.get(artifact) is not None:
                manifest = self._read(artifact)
                if manifest is not None:
                    self._manifests[artifact] = manifest
                    if len(self._manifests) > MAX_MANIFESTS:
                        self._manifests.popitem(last=False)
            elif manifest is not None:
                self._manifests.move_to_end(artifact)
            return manifest

    def touch(self, artifact: bytes) -> None:
        """Note a use; on disk at most once a minute."""
        now = self._clock()
        self._used[artifact] = now
        if now - self._stamped.get(artifact, 0.0) > TOUCH_S:
            self._stamped[artifact] = now
            try:
                os.utime(self._layout.artifact(artifact), (now, now))
            except OSError:
                return

    def last_used(self, artifact: bytes) -> float:
        """Unix seconds; 0 for what is not there."""
        return self._used.get(artifact, 0.0)

    def add(self, artifact: bytes) -> Entry | None:
        """Take in an artifact that was just put in place."""
        with self._lock:
            return self._entries.get(artifact) or self._load(artifact)

    def drop(self, artifact: bytes) -> None:
        """Forget an artifact that was moved away."""
        with self._lock:
            self._entries.pop(artifact, None)
            self._used.pop(artifact, None)
            self._stamped.pop(artifact, None)
            self._manifests.pop(artifact, None)

    def _load(self, artifact: bytes) -> Entry | None:
        folder = self._layout.artifact(artifact)
        try:
            status = folder.stat(follow_symlinks=False)
        except OSError:
            return None
        manifest = self._read(artifact)
        if manifest is None or not stat.S_ISDIR(status.st_mode):
            self.broken.add(artifact)
            return None
        base = parse_artifact_id(manifest.base) if isinstance(manifest, AdapterManifest) else None
        entry = Entry(artifact, kind_of(manifest), content_size(manifest), footprint(manifest), base)
        self.broken.discard(artifact)
        self._entries[artifact] = entry
        self._used[artifact] = self._stamped[artifact] = status.st_mtime
        return entry

    def _read(self, artifact: bytes) -> AnyManifest | None:
        try:
            with open_regular(self._layout.artifact(artifact) / MANIFEST, os.O_RDONLY) as descriptor:
                data = read_exactly(descriptor, MAX_MANIFEST_BYTES + 1, 0)
            return decode_manifest(data, ArtifactId(artifact))
        except (OSError, OpenLoraError):
            return None
