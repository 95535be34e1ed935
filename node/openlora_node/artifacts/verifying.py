"""Reads a complete artifact again from its first byte to its last, and takes a damaged one out of use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..protocol.chunks import CHUNK_SIZE, ChunkTree, chunk_hash, chunk_length
from ..protocol.manifest import AnyManifest
from .contents import content_size
from .layout import CHUNKS, Layout, open_regular, read_exactly, unseal, write_new
from .partial import Progress
from .trees import ABSENT, HASH, Slots


@dataclass(frozen=True)
class Finding:
    """Damaged paths, ascending; `kept`: the hash of each chunk that is good, as `.chunks` holds them."""

    damaged: tuple[str, ...]
    kept: bytes


def check_artifact(folder: Path, manifest: AnyManifest, progress: Progress) -> Finding:
    """Compare every file with the manifest. Raises OSError when the disk refuses to be read."""
    slots, done, total = Slots(manifest), 0, content_size(manifest)
    leaves = _hashes(folder, HASH * slots.total)
    kept, damaged = bytearray(leaves), set()
    for file, entry in enumerate(manifest.files):
        start = slots.slot(file, 0)
        if ChunkTree(slots.hashes(leaves, file)).root.hex() != entry.root:
            damaged.add(entry.path)
            kept[start * HASH : (start + slots.counts[file]) * HASH] = bytes(HASH * slots.counts[file])
            done += entry.size
            continue
        try:
            with open_regular(folder / entry.path, os.O_RDONLY) as descriptor:
                if os.fstat(descriptor).st_size != entry.size:
                    damaged.add(entry.path)
                for index in range(slots.counts[file]):
                    place, length = (start + index) * HASH, chunk_length(entry.size, index)
                    if chunk_hash(read_exactly(descriptor, length, index * CHUNK_SIZE)) != leaves[place : place + HASH]:
                        damaged.add(entry.path)
                        kept[place : place + HASH] = ABSENT
                    done += length
                    progress(done, total)
        except OSError:
            damaged.add(entry.path)
            kept[start * HASH : (start + slots.counts[file]) * HASH] = bytes(HASH * slots.counts[file])
    expected = {entry.path for entry in manifest.files}
    found = {
        str(Path(path, name).relative_to(folder)) for path, _, names in os.walk(folder) for name in names
    }  # fmt: skip
    damaged |= {name for name in found - expected if not name.startswith(".")}
    return Finding(tuple(sorted(damaged)), bytes(kept))


def withdraw(layout: Layout, artifact: bytes, kept: bytes) -> None:
    """Turn a damaged artifact back into a download that lacks what was damaged. Raises OSError."""
    target = layout.partial(artifact)
    layout.discard(target)
    folder = layout.artifact(artifact)
    unseal(folder)
    folder.rename(target)
    write_new(target / CHUNKS, kept)


def _hashes(folder: Path, length: int) -> bytes:
    try:
        with open_regular(folder / CHUNKS, os.O_RDONLY) as descriptor:
            return read_exactly(descriptor, length, 0).ljust(length, b"\0")
    except FileNotFoundError:
        return bytes(length)
