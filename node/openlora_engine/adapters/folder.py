"""An adapter's folder, opened so that nothing else can be read through it: confined, no symlinks, regular files, caps.

Every component is opened relative to the one before with O_NOFOLLOW, so a path that is swapped for a link between
check and use does not help. Knows no JSON and no tensor.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

from ..errors import Code, EngineError
from .problems import invalid

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_DEPTH = 8
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.pkl")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for a writer. It changes nothing for regular files.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAMP = struct.Struct("<5Q")


@dataclass(frozen=True, eq=False)
class AdapterRoot:
    """A folder that the operator named: the one under which adapters lie, or one adapter's own.

    The operator's path itself may run over symlinks; below it none is followed.
    """

    path: Path

    def parts_of(self, path: str) -> tuple[str, ...]:
        """Components of `path` below the root; relative, or absolute under it. Raises ADAPTER_INVALID outside it."""
        pure = PurePosixPath(path)
        if pure.is_absolute():
            roots = (self.path.absolute(), self.path.resolve())
            pure = next((pure.relative_to(root) for root in roots if pure.is_relative_to(root)), pure)
        if pure.is_absolute() or ".." in pure.parts or "\0" in path:
            raise invalid("the adapter's path leads outside the engine's adapter folder; move it below --adapters")
        if len(pure.parts) > MAX_DEPTH:
            raise invalid(f"the adapter lies more than {MAX_DEPTH} folders deep")
        return pure.parts

    def names(self) -> Iterator[str]:
        """Subfolders that hold an adapter's configuration; one look-up each, no reading. Raises CONFIG_INVALID."""
        try:
            listing = os.scandir(self.path)
        except OSError:
            raise EngineError(Code.CONFIG_INVALID, "--adapters must be a folder that can be read") from None
        with listing as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False) and self.holds((entry.name,)):
                    yield entry.name

    def holds(self, parts: tuple[str, ...]) -> bool:
        """Whether an adapter's configuration seems to be there."""
        return self._stat(parts, CONFIG_FILE) is not None

    def stamp(self, parts: tuple[str, ...]) -> bytes | None:
        """What changes when either file does (device, inode, size, mtime, ctime of both); None where one is missing."""
        stats = [self._stat(parts, name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        return None if None in stats else b"".join(stamp_of(found) for found in stats if found)

    @contextmanager
    def open(self, parts: tuple[str, ...]) -> Iterator[AdapterFolder]:
        """The adapter's folder, component by component. Raises ADAPTER_NOT_FOUND or ADAPTER_INVALID."""
        descriptor = _open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None, "the engine's adapter folder")
        try:
            for part in parts:
                deeper = _open(part, _DIRECTORY, descriptor, "the adapter's folder")
                os.close(descriptor)
                descriptor = deeper
            yield AdapterFolder(descriptor)
        finally:
            os.close(descriptor)

    def _stat(self, parts: tuple[str, ...], name: str) -> os.stat_result | None:
        try:
            found = self.path.joinpath(*parts, name).stat(follow_symlinks=False)
        except OSError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None


class AdapterFolder:
    """An open adapter folder. Its descriptor belongs to whoever opened it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_config(self) -> tuple[bytes, bytes]:
        """adapter_config.json and its stamp. Raises ADAPTER_INVALID."""
        with self._regular(CONFIG_FILE, MAX_CONFIG_BYTES) as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
            if len(data) > MAX_CONFIG_BYTES:
                raise _too_large(CONFIG_FILE, MAX_CONFIG_BYTES)
            return data, stamp_of(os.fstat(file.fileno()))

    @contextmanager
    def open_weights(self, max_bytes: int) -> Iterator[OpenFile]:
        """adapter_model.safetensors. Raises ADAPTER_NOT_FOUND, ADAPTER_INVALID, ADAPTER_TOO_LARGE."""
        try:
            file = self._regular(WEIGHTS_FILE, max_bytes)
        except EngineError as error:
            if error.code is Code.ADAPTER_NOT_FOUND and (pickle := self._pickle()):
                raise invalid(
                    f"{pickle} is a pickle, which can run code when read: "
                    "save the adapter with safe_serialization=True (safetensors)"
                ) from None
            raise
        with file:
            yield OpenFile(file)

    def _regular(self, name: str, max_bytes: int) -> FileIO:
        descriptor = _open(name, _FILE, self._descriptor, name)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
            return FileIO(descriptor, "rb")
        os.close(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise invalid(f"{name} is not a regular file")
        raise _too_large(name, max_bytes)

    def _pickle(self) -> str | None:
        listed = (name for name in PICKLES if os.access(name, os.F_OK, dir_fd=self._descriptor, follow_symlinks=False))
        return next(listed, None)


class OpenFile:
    """A file while it is read: its size and stamp when it was opened."""

    def __init__(self, file: FileIO) -> None:
        found = os.fstat(file.fileno())
        self.file = file
        self.size = found.st_size
        self.stamp = stamp_of(found)

    def check_unchanged(self) -> None:
        """Raise ADAPTER_INVALID if somebody wrote to it since."""
        if stamp_of(os.fstat(self.file.fileno())) != self.stamp:
            raise invalid(
                "the adapter's files changed while they were read: write them elsewhere and rename the folder"
            )


def stamp_of(found: os.stat_result) -> bytes:
    """Forty bytes that change when the file is replaced or written. ctime is what utime() cannot set."""
    fields = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _STAMP.pack(*(field & 0xFFFF_FFFF_FFFF_FFFF for field in fields))


def _open(name: str | Path, flags: int, directory: int | None, what: str) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        raise EngineError(Code.ADAPTER_NOT_FOUND, f"{what} does not exist") from None
    except OSError as error:
        # O_NOFOLLOW on a link: ELOOP, or ENOTDIR where a directory was wanted.
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise invalid(f"{what} is a symbolic link or no folder: put the real files there") from None
        raise invalid(f"{what} cannot be opened ({errno.errorcode.get(error.errno or 0, 'unknown error')})") from None


def _too_large(name: str, max_bytes: int) -> EngineError:
    advice = "raise --max-adapter-size" if name == WEIGHTS_FILE else "it is not a PEFT configuration"
    return EngineError(Code.ADAPTER_TOO_LARGE, f"{name} has more than {max_bytes:,} bytes: {advice}")
