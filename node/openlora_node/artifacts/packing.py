"""A folder or a file as an artifact: which of its files go in, copied and hashed in one reading, and the manifest.

What is hashed is what was copied, so a source that changes meanwhile cannot get unhashed bytes in. Links, FIFOs and
devices are refused where a wanted file is expected; the rest of the folder is left alone and listed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..protocol.chunks import CHUNK_SIZE, ChunkTree, chunk_hash
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.manifest import AnyManifest, check_path
from .contents import ADAPTER_CONFIG, SHARES, Kind, check_contents, is_wanted
from .describing import MAX_TEXT_BYTES, TEXTS, About, Content, describe, read_object
from .layout import open_regular, read_exactly, storage_error, storage_errors, write_all
from .partial import Progress

MAX_SCANNED = 20_000
RECIPE = "recipe.json"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class Packed:
    """A manifest, the chunk hashes of all files in its order, and what of the folder was left out."""

    manifest: AnyManifest
    chunks: bytes
    left_out: tuple[str, ...]


Opener = Callable[[], AbstractContextManager[int]]


@dataclass
class _File:
    path: str
    size: int
    open: Opener | None
    digest: bytes = b""
    hashes: list[bytes] = field(default_factory=list)
    text: bytes = b""
    lines: int = 0

    def summary(self) -> Content:
        """What the manifest is made of."""
        root = ChunkTree(self.hashes).root
        return Content(self.path, self.size, root, self.digest, self.text, self.lines)


class Package:
    """A source that is open and was looked through, not read yet. Methods block. Close it, or use it with `with`."""

    def __init__(self, source: Path, kind: Kind, about: About, *, follow_links: bool = False) -> None:
        """`follow_links`: take what a link of the folder points to. Raises NOT_FOUND, BAD_MANIFEST, STORAGE_FAILED."""
        self.kind = kind
        self._about = about
        self._follow_links = follow_links
        self._opened = ExitStack()
        self._files: list[_File] = []
        self._left_out: list[str] = []
        self._recipe: Mapping[str, Any] = {}
        try:
            self._look(source)
        except FileNotFoundError:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "there is no such folder or file to publish") from None
        except OSError as error:
            self.close()
            raise storage_error(error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the source."""
        self._opened.close()

    @property
    def size(self) -> int:
        """Bytes to read, as far as known now."""
        return sum(file.size for file in self._files)

    @property
    def files(self) -> int:
        """How many files go in."""
        return len(self._files)

    def read(self, target: Path | None, progress: Progress) -> Packed:
        """Read everything, into `target` unless it is None, and make the manifest.

        Raises BAD_MANIFEST for what the kind does not allow, STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_FAILED.
        """
        done, total = 0, self.size
        for file in self._files:
            if target is not None:
                (target / file.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with storage_errors():
                done = self._read(file, target, done, lambda now: progress(now, max(now, total)))
        shares = self._about.shares
        if self.kind is Kind.DATASET and shares is not None:
            file = _File(SHARES, 0, None)
            _add_chunk(file, shares.encode())
            self._files.append(file)
            if target is not None:
                with storage_errors(), open_regular(target / SHARES, os.O_WRONLY | os.O_CREAT) as descriptor:
                    write_all(descriptor, shares.encode(), 0)
        self._files.sort(key=lambda file: file.path)
        about = self._about if self._about.recipe is not None else replace(self._about, recipe=self._recipe)
        manifest = describe(self.kind, about, tuple(file.summary() for file in self._files))
        check_contents(manifest)
        chunks = b"".join(leaf for file in self._files for leaf in file.hashes)
        return Packed(manifest, chunks, tuple(sorted(self._left_out)))

    def _look(self, source: Path) -> None:
        if stat.S_ISREG(source.stat().st_mode):
            if self.kind is not Kind.DATASET:
                raise _refuse(f"{self.kind.article} is published as a folder")
            self._take(source.name, lambda: open_regular(source.resolve(), os.O_RDONLY))
            return
        top = os.open(source, _FOLDER)  # the path that the operator gave may run over links; below it none is followed
        self._opened.callback(os.close, top)
        scanned = 0
        for path, folders, names, folder in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            depth = path.removeprefix(".").removeprefix("/")
            folders[:] = [] if self.kind is not Kind.DATASET else sorted(f for f in folders if not f.startswith("."))
            for name in sorted(names):
                scanned += 1
                if scanned > MAX_SCANNED:
                    raise _refuse(f"the folder holds more than {MAX_SCANNED} files")
                inner = f"{depth}/{name}" if depth else name
                if name == RECIPE and not depth and self.kind is Kind.ADAPTER:
                    if self._about.recipe is None:
                        self._recipe = read_object(self._text(folder, name), RECIPE)
                elif inner == SHARES or name.startswith(".") or not is_wanted(self.kind, inner):
                    self._left_out.append(inner)
                else:
                    self._take(inner, _opener(top, inner, self._follow_links))
        if self.kind is Kind.ADAPTER and ADAPTER_CONFIG in self._left_out:
            raise _refuse(f"{ADAPTER_CONFIG} is not a regular file")

    def _take(self, path: str, open_file: Opener) -> None:
        check_path(path)
        try:
            with open_file() as descriptor:
                size = os.fstat(descriptor).st_size
        except OSError:
            raise _refuse(f"{path} is a link, or no regular file, or cannot be read: copy it (cp -L)") from None
        self._files.append(_File(path, size, open_file))

    def _read(self, file: _File, target: Path | None, done: int, progress: Callable[[int], object]) -> int:
        digest, offset = sha256(), 0
        lines = _Lines(file.path) if file.path.endswith(".jsonl") else None
        with ExitStack() as stack:
            assert file.open is not None
            source = stack.enter_context(file.open())
            out = -1
            if target is not None:
                out = stack.enter_context(open_regular(target / file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            while data := read_exactly(source, CHUNK_SIZE, offset):
                digest.update(data)
                file.hashes.append(chunk_hash(data))
                if target is not None:
                    write_all(out, data, offset)
                if file.path in TEXTS and offset < MAX_TEXT_BYTES:
                    file.text += data
                if lines is not None:
                    lines.feed(data)
                offset += len(data)
                progress(done + offset)
        if lines is not None:
            file.lines = lines.finish()
        file.hashes = file.hashes or [chunk_hash(b"")]
        file.size, file.digest = offset, digest.digest()
        return done + offset

    @staticmethod
    def _text(folder: int, name: str) -> bytes:
        try:
            with open_regular(name, os.O_RDONLY, folder=folder) as descriptor:
                return read_exactly(descriptor, MAX_TEXT_BYTES + 1, 0)
        except OSError:
            raise _refuse(f"{name} is a link, or no regular file, or cannot be read") from None


class _Lines:
    """Checks JSON lines as they come: one object a line, UTF-8."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest = b""
        self._number = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises BAD_MANIFEST naming the line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > MAX_TEXT_BYTES:
            raise _refuse(f"{self._path}: line {self._number + 1} is longer than {MAX_TEXT_BYTES} bytes")

    def finish(self) -> int:
        """The file ends here: its number of lines."""
        if self._rest:
            self._line(self._rest)
        return self._number

    def _line(self, line: bytes) -> None:
        self._number += 1
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            sample = None
        if not isinstance(sample, dict):
            raise _refuse(f"{self._path}: line {self._number} is not a JSON object")


def _opener(top: int, path: str, follow_links: bool) -> Opener:
    """Opens a file component by component, so that no folder swapped for a link leads elsewhere."""

    def open_file() -> AbstractContextManager[int]:
        stack = ExitStack()
        folder = top
        try:
            *parents, name = path.split("/")
            for parent in parents:
                folder = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = stack.enter_context(open_regular(name, os.O_RDONLY, folder=folder, follow_links=follow_links))
        except BaseException:
            stack.close()
            raise
        return _Opened(stack, descriptor)

    return open_file


class _Opened:
    """A descriptor and what must be closed with it."""

    def __init__(self, stack: ExitStack, descriptor: int) -> None:
        self._stack = stack
        self._descriptor = descriptor

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _add_chunk(file: _File, data: bytes) -> None:
    """The whole content of a small file made here."""
    pieces = [data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE)] or [b""]
    file.hashes = [chunk_hash(piece) for piece in pieces]
    file.size = len(data)


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, message)
