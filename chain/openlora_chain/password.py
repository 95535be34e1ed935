"""Where the password of a key file comes from: a private file, a systemd credential, or a person at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import ChainError, ChainErrorCode
from .files import read_private

MAX_PASSWORD_BYTES = 1_024


class Password:
    """A secret text whose repr is empty of it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ChainError(ChainErrorCode.PASSWORD_MISSING, "an empty password protects nothing")
        self._text = text

    def __repr__(self) -> str:
        return "Password(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Password) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def reveal(self) -> str:
        """The text, for key derivation alone."""
        return self._text


def from_file(path: Path) -> Password:
    """The first line of a file of mode 0600. Raises ChainError PASSWORD_MISSING, KEY_UNSAFE."""
    return _first_line(read_private(path, MAX_PASSWORD_BYTES, ChainErrorCode.PASSWORD_MISSING))


def from_credential(name: str, environment: Mapping[str, str] = os.environ) -> Password:
    """A credential that systemd handed to this unit (LoadCredential=). Raises ChainError PASSWORD_MISSING.

    Mode and owner are not checked: systemd keeps the directory private and grants access by ACL, which shows as a group
    bit.
    """
    return _first_line(credential(name, MAX_PASSWORD_BYTES, ChainErrorCode.PASSWORD_MISSING, environment))


def credential(name: str, limit: int, missing: ChainErrorCode, environment: Mapping[str, str] = os.environ) -> bytes:
    """The bytes of a credential, cut one past `limit`. Raises ChainError `missing`."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory or "/" in name or name in ("", ".", ".."):
        raise ChainError(missing, "run under a unit with LoadCredential= for this name")
    try:
        with (Path(directory) / name).open("rb") as file:
            return file.read(limit + 1)
    except OSError:
        raise ChainError(missing, f"the unit has no credential named {name}") from None


def from_prompt(
    prompt: str, *, confirm: bool = False, ask: Callable[[str], str] = getpass.getpass, is_terminal: bool | None = None
) -> Password:
    """Ask without echo. Raises ChainError PASSWORD_MISSING without a terminal, PASSWORD_WRONG if two entries differ."""
    if not (sys.stdin.isatty() if is_terminal is None else is_terminal):
        raise ChainError(ChainErrorCode.PASSWORD_MISSING)
    text = ask(f"{prompt}: ")
    if confirm and ask(f"{prompt}, again: ") != text:
        raise ChainError(ChainErrorCode.PASSWORD_WRONG, "the two entries differ: start again")
    return Password(text)


def _first_line(content: bytes) -> Password:
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ChainError(ChainErrorCode.PASSWORD_MISSING, "a password is UTF-8 text") from None
    if len(content) > MAX_PASSWORD_BYTES or not lines:
        raise ChainError(ChainErrorCode.PASSWORD_MISSING, f"a password file holds one line, {MAX_PASSWORD_BYTES} bytes")
    return Password(lines[0])
