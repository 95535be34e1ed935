"""Where an artifact store keeps what, and the few file operations that must survive a crash at any point.

    sha256/<2 hex>/<64 hex>/    an artifact: its files, `.manifest`, `.chunks`; complete, verified, read-only
    .partial/<64 hex>/          a download under way, of the same shape
    .incoming/                  imports under way
    .pins/<64 hex>              an empty file: never evict this one
    .trash/                     what is being deleted
    .lock                       who may evict and delete

No path of a manifest begins with a dot, so the names here cannot meet one. An artifact appears and disappears by one
rename; its name is made of an id's bytes and never of text that came from elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ..protocol.errors import ErrorCode, OpenLoraError

MANIFEST = ".manifest"
CHUNKS = ".chunks"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_numbers = count()


class Layout:
    """The paths below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.complete = root / "sha256"
        self.partials = root / ".partial"
        self.incoming = root / ".incoming"
        self.pins = root / ".pins"
        self.trash = root / ".trash"

    def create(self) -> None:
        """Make the folders, private to this user. Raises STORAGE_READ_ONLY, STORAGE_FULL, STORAGE_FAILED."""
        with storage_errors():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.complete, self.partials, self.incoming, self.pins, self.trash):
                folder.mkdir(mode=0o700, exist_ok=True)

    def artifact(self, artifact: bytes) -> Path:
        """The folder of a complete artifact."""
        digits = _digits(artifact)
        return self.complete / digits[:2] / digits

    def partial(self, artifact: bytes) -> Path:
        """The folder of a download."""
        return self.partials / _digits(artifact)

    def pin(self, artifact: bytes) -> Path:
        """The file whose presence pins an artifact."""
        return self.pins / _digits(artifact)

    def fresh(self, parent: Path) -> Path:
        """A name that nothing has, in `incoming` or `trash`."""
        return parent / f"{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"

    def banish(self, folder: Path) -> Path | None:
        """Make a folder vanish at once: where in the trash it lies now; None when it was not there."""
        doomed = self.fresh(self.trash)
        try:
            _open_up(folder)  # moving a folder rewrites its `..`
            folder.rename(doomed)
        except FileNotFoundError:
            return None
        return doomed

    def discard(self, folder: Path) -> None:
        """Make a folder vanish at once and free its space after. Nothing happens when it is not there."""
        doomed = folder if folder.parent == self.trash else self.banish(folder)
        if doomed is None:
            return
        if not stat.S_ISDIR(doomed.stat(follow_symlinks=False).st_mode):
            doomed.unlink()  # a link or a file where a folder should be: nothing behind it is touched
            return
        for path, folders, _ in os.walk(doomed):
            for name in folders:
                _open_up(Path(path, name))
        shutil.rmtree(doomed, ignore_errors=True)


def parse_folder_name(name: str) -> bytes | None:
    """The artifact id that a folder or pin is named after; None for any other name."""
    if len(name) != 64 or name != name.lower():
        return None
    try:
        return bytes.fromhex(name) if name.isalnum() else None
    except ValueError:
        return None


def seal(folder: Path) -> None:
    """Flush everything in a folder to disk and make it read-only, the folder itself excepted: it is still to move."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            file = Path(path, name)
            sync(file)
            file.chmod(0o444)
        for name in folders:
            Path(path, name).chmod(0o555)
        sync(Path(path))


def unseal(folder: Path) -> None:
    """Make everything in a folder writable for its owner."""
    folder.chmod(0o700)
    for path, folders, files in os.walk(folder):
        for name in folders:
            Path(path, name).chmod(0o700)
        for name in files:
            Path(path, name).chmod(0o600)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed; None while another holds it. Raises FileNotFoundError."""
    while True:
        descriptor = os.open(folder, _DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), folder.stat(follow_symlinks=False)):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was moved away between the two calls


def lock_file(path: Path) -> int:
    """Lock a file that names its holder, until the descriptor is closed. Raises DATADIR_LOCKED, STORAGE_…"""
    with storage_errors():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f"process {holder}" if holder.isdecimal() else "another process"
        raise OpenLoraError(ErrorCode.DATADIR_LOCKED, f"{who} writes to this artifact store: stop it first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def allocated(folder: Path) -> int:
    """Bytes that a folder takes on disk."""
    return sum(status.st_blocks * 512 for status in _stats(folder))


def newest(folder: Path) -> float:
    """When something in a folder last changed, in unix seconds."""
    return max((status.st_mtime for status in _stats(folder)), default=0.0)


def write_new(path: Path, data: bytes) -> None:
    """A small file with this content, whole or not there at all."""
    draft = path.with_name(f"{path.name}.new")
    with open_regular(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write_all(descriptor, data, 0)
    draft.rename(path)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset`, fewer at the end of the file."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


@contextmanager
def open_regular(
    path: Path | str, flags: int, *, folder: int | None = None, follow_links: bool = False
) -> Iterator[int]:
    """A descriptor of a regular file: no link is followed unless allowed, no FIFO waited for. Raises OSError."""
    # O_NONBLOCK: opening a FIFO must not wait for a writer; it changes nothing for regular files.
    links = 0 if follow_links else os.O_NOFOLLOW
    descriptor = os.open(path, flags | links | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise what the disk refuses as STORAGE_FULL, STORAGE_READ_ONLY or STORAGE_FAILED."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error


def storage_error(error: OSError) -> OpenLoraError:
    """What a refusal by the disk means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OpenLoraError(ErrorCode.STORAGE_FULL)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OpenLoraError(ErrorCode.STORAGE_READ_ONLY, "make the artifact store writable for this user")
    return OpenLoraError(ErrorCode.STORAGE_FAILED)


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for path, _, files in os.walk(folder):
        for name in ["", *files]:
            with suppress(OSError):
                yield Path(path, name).stat(follow_symlinks=False)


def _open_up(folder: Path) -> None:
    if not folder.is_symlink():
        folder.chmod(0o700)


def _digits(artifact: bytes) -> str:
    if len(artifact) != 32:
        raise OpenLoraError(ErrorCode.BAD_ID)
    return artifact.hex()
