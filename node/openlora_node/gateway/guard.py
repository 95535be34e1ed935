"""Who may speak to the endpoint that spends: a bearer token from a private file; Host and Origin against web pages.

A page that points its own name at 127.0.0.1 can make a browser call a server here; the browser then sends that name as
Host, and the page as Origin. Addresses and localhost cannot be rebound.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from ..api.hosts import is_address
from ..protocol.errors import ErrorCode, OpenLoraError

TOKEN_FILE = "token"  # noqa: S105 - its name
TOKEN_BYTES = 32
MAX_TOKEN_BYTES = 512
OPEN_PATHS = frozenset({"/healthz"})
"""Answered without the token: they tell nothing of the payer."""


class Guard:
    """The checks before a request's body is looked at."""

    def __init__(self, token: str, *, any_host: bool = False) -> None:
        """`any_host`: the endpoint listens off loopback by consent, under names that are not known here."""
        self._token = token.encode()
        self._any_host = any_host

    def __repr__(self) -> str:
        return "Guard(…)"

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises FORBIDDEN for a foreign Host or Origin, UNAUTHORIZED without the token."""
        host, origin = headers.get("Host"), headers.get("Origin")
        if host is not None and not self._any_host and not is_address(host):
            raise OpenLoraError(ErrorCode.FORBIDDEN, "the Host header names another server: call 127.0.0.1")
        if origin is not None and origin.lower().partition("://")[2] != (host or "").lower():
            raise OpenLoraError(ErrorCode.FORBIDDEN, "web pages may not call this server: it can spend")
        if path not in OPEN_PATHS:
            self._check_token(headers.get("Authorization", ""))

    def _check_token(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        raw = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(raw, self._token):
            return
        raise OpenLoraError(ErrorCode.UNAUTHORIZED)


def open_token(path: Path) -> str:
    """The token in the file, made at first. Raises KEY_FAILED for a file that others can read or that holds none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, "the gateway's directory cannot be written") from None
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def read_token(path: Path) -> str:
    """The token of a gateway that was started before. Raises NOT_FOUND, KEY_FAILED."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "no gateway was started here yet") from None
    except OSError:
        raise OpenLoraError(ErrorCode.KEY_FAILED, "the gateway's token file cannot be read") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
            raise OpenLoraError(ErrorCode.KEY_FAILED, "the gateway's token file is open to others: chmod 600 it")
        token = file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    if len(token) < 16 or not token.isprintable():
        raise OpenLoraError(ErrorCode.KEY_FAILED, "the gateway's token file holds no token: delete it and start again")
    return token
