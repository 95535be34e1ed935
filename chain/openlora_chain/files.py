"""Files that hold secrets: read only if nobody else could have, written whole or not at all, never overwritten."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from .errors import ChainError, ChainErrorCode

SECRET_MODE = 0o600


def read_private(path: Path, limit: int, missing: ChainErrorCode) -> bytes:
    """The content of a regular file that belongs to this user and that nobody else can read.

    Raises ChainError KEY_UNSAFE, KEY_MALFORMED beyond `limit` bytes, and `missing` where there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ChainError(missing, f"there is no file {path.name}") from None
    except OSError:
        raise ChainError(ChainErrorCode.KEY_UNSAFE, f"{path.name} cannot be opened, or is a symbolic link") from None
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o077:
            raise ChainError(
                ChainErrorCode.KEY_UNSAFE,
                f"{path.name} has mode {mode:04o} and user {status.st_uid}: "
                f"make it a plain file of user {os.geteuid()} with mode 0600",
            )
        content = os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise ChainError(ChainErrorCode.KEY_MALFORMED, f"{path.name} is larger than any key or password file")
    return content


def write_new(path: Path, content: bytes) -> None:
    """Create the file with its whole content, durably, or not at all. Raises ChainError KEY_EXISTS, KEY_UNSAFE."""
    temporary = _write_temporary(path, content)
    try:
        # A link, unlike a rename, fails where the name is taken.
        os.link(temporary, path)
    except FileExistsError:
        raise ChainError(ChainErrorCode.KEY_EXISTS) from None
    except OSError as error:
        raise _unwritable(error) from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Put new content in place of the file's, in one step. Raises ChainError KEY_UNSAFE."""
    temporary = _write_temporary(path, content)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(error) from None
    _sync_directory(path.parent)


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, SECRET_MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(error) from None
    return temporary


def _unwritable(error: OSError) -> ChainError:
    return ChainError(ChainErrorCode.KEY_UNSAFE, f"cannot write the file: {os.strerror(error.errno or 0)}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
