"""The data directory: one process's own, private to its user. Knows the directory and its lock, not what lies in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from .protocol.errors import ErrorCode, OpenLoraError

LOCK_NAME = "LOCK"
JOURNAL_NAME = "node.sqlite"
"""The node's journal in its data directory."""
PAYER_JOURNAL_NAME = "payer.sqlite"
"""The gateway's in its own."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DataDir:
    """A locked data directory. The kernel drops the lock when the process ends, however it ends.

    LOCK holds the owner's pid and boot id, for the message of whoever comes second; the file itself is never removed,
    because two processes could then each lock a file of that name.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create the directory (0700) if it is missing, check it, lock it.

        Raises OpenLoraError DATADIR_UNSAFE, DATADIR_LOCKED, STORAGE_READ_ONLY, STORAGE_FULL, STORAGE_FAILED.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(path)
            return cls(path, _lock(path / LOCK_NAME))
        except OSError as error:
            raise _storage_error(error) from error

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_private(path: Path) -> None:
    # Follows a symbolic link on purpose: systemd's StateDirectory with DynamicUser is one.
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise OpenLoraError(
            ErrorCode.DATADIR_UNSAFE, f"the data directory belongs to user {status.st_uid}, not to {os.geteuid()}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise OpenLoraError(
            ErrorCode.DATADIR_UNSAFE, f"the data directory has mode {mode:04o}: run chmod 700 on it, others can read it"
        )


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{_boot_id()}\n".encode(), 0)
    except BlockingIOError:
        holder = _holder(os.pread(descriptor, 128, 0))
        os.close(descriptor)
        raise OpenLoraError(ErrorCode.DATADIR_LOCKED, f"{holder} uses this data directory: stop it first") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(content: bytes) -> str:
    """Who holds the lock. The file may be a moment behind the lock: empty, or still of the process before."""
    pid, _, boot_id = content.decode("ascii", "replace").strip().partition("\n")
    if not pid.isdecimal():
        return "another process"
    if boot_id != _boot_id():
        return f"process {pid} of another machine"
    return f"process {pid}"


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return "unknown"


def _storage_error(error: OSError) -> OpenLoraError:
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
        return OpenLoraError(ErrorCode.DATADIR_UNSAFE, "the data directory, or LOCK in it, is not what it should be")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OpenLoraError(ErrorCode.STORAGE_READ_ONLY)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OpenLoraError(ErrorCode.STORAGE_FULL)
    return OpenLoraError(ErrorCode.STORAGE_FAILED)
