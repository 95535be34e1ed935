"""Key files: keystore v3 (scrypt), mode 0600, never overwritten. Key derivation runs off the event loop.

Knows files and passwords, no chain. A file that others could have read or written is refused, and so is one whose key
derivation would take more memory or time than any honest one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json

from .errors import ChainError, ChainErrorCode
from .files import read_private, replace, write_new
from .password import Password, credential
from .wallet import CURVE_ORDER, Wallet, require_native_crypto

SCRYPT_N = 262_144
MAX_SCRYPT_N = 1 << 20
MAX_SCRYPT_RP = 32
MAX_PBKDF2_C = 10_000_000
MAX_FILE_BYTES = 16_384


async def create(path: Path, password: Password, *, work_factor: int = SCRYPT_N) -> Wallet:
    """A new random key, stored at `path`. Raises ChainError KEY_EXISTS, KEY_UNSAFE."""
    while not 0 < int.from_bytes(secret := secrets.token_bytes(32), "big") < CURVE_ORDER:
        pass
    return await store(path, secret, password, work_factor=work_factor)


async def store(path: Path, secret: bytes, password: Password, *, work_factor: int = SCRYPT_N) -> Wallet:
    """Encrypt a key into a new file at `path`. Raises ChainError KEY_EXISTS, KEY_MALFORMED, KEY_UNSAFE."""
    wallet = Wallet(secret)
    sealed = await asyncio.to_thread(_seal, wallet, password, work_factor)
    write_new(path, sealed)
    return wallet


async def load(path: Path, password: Password) -> Wallet:
    """Open the key at `path`. Raises ChainError KEY_NOT_FOUND, KEY_UNSAFE, KEY_MALFORMED, PASSWORD_WRONG."""
    require_native_crypto()
    document = _parse(_read(path))
    return await asyncio.to_thread(_open, document, password)


async def load_credential(name: str, password: Password, environment: Mapping[str, str] = os.environ) -> Wallet:
    """Open the key in a credential that systemd handed to this unit. Raises ChainError KEY_NOT_FOUND, KEY_MALFORMED.

    Mode and owner are not checked, as for a password's credential.
    """
    require_native_crypto()
    document = _parse(credential(name, MAX_FILE_BYTES, ChainErrorCode.KEY_NOT_FOUND, environment))
    return await asyncio.to_thread(_open, document, password)


async def change_password(path: Path, old: Password, new: Password, *, work_factor: int = SCRYPT_N) -> Wallet:
    """Encrypt the key anew; the file is replaced in one step, so that one of the two passwords always opens it."""
    wallet = await load(path, old)
    sealed = await asyncio.to_thread(_seal, wallet, new, work_factor)
    replace(path, sealed)
    return wallet


async def back_up(path: Path, target: Path, password: Password) -> Wallet:
    """Copy the encrypted file to a new one, after proving that the password opens the copy."""
    content = _read(path)
    wallet = await asyncio.to_thread(_open, _parse(content), password)
    write_new(target, content)
    copied = await load(target, password)
    if copied.address != wallet.address:
        raise ChainError(ChainErrorCode.KEY_MALFORMED, "the copy holds another key: the disk is not to be trusted")
    return wallet


def address_of(path: Path) -> bytes:
    """The address that the file claims to hold, without its password; 20 bytes."""
    return _claimed(_parse(_read(path)))


def credential_address(name: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """The same for a credential."""
    return _claimed(_parse(credential(name, MAX_FILE_BYTES, ChainErrorCode.KEY_NOT_FOUND, environment)))


def _claimed(document: Mapping[str, Any]) -> bytes:
    address = document.get("address")
    try:
        claimed = bytes.fromhex(str(address).removeprefix("0x"))
    except ValueError:
        claimed = b""
    if len(claimed) != 20:
        raise ChainError(ChainErrorCode.KEY_MALFORMED, "the key file names no address")
    return claimed


def parse_secret(text: str) -> bytes:
    """`0x<64 hex>`, the prefix optional → 32 bytes. Raises ChainError KEY_MALFORMED, which never quotes the text."""
    try:
        secret = bytes.fromhex(text.strip().removeprefix("0x"))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ChainError(ChainErrorCode.KEY_MALFORMED, "a private key is 64 hex digits")
    return secret


def write_secret(path: Path, wallet: Wallet) -> None:
    """Write the bare key to a new file of mode 0600, as hex. Raises ChainError KEY_EXISTS, KEY_UNSAFE."""
    write_new(path, f"0x{wallet.reveal().hex()}\n".encode())


def _seal(wallet: Wallet, password: Password, work_factor: int) -> bytes:
    document = create_keyfile_json(
        wallet.reveal(), password.reveal().encode(), version=3, kdf="scrypt", iterations=work_factor
    )
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _open(document: dict[str, Any], password: Password) -> Wallet:
    try:
        secret = decode_keyfile_json(document, password.reveal().encode())
    except (ValueError, TypeError, KeyError, OverflowError, NotImplementedError) as error:
        if "MAC" in str(error):
            raise ChainError(ChainErrorCode.PASSWORD_WRONG) from None
        raise ChainError(ChainErrorCode.KEY_MALFORMED) from None
    wallet = Wallet(bytes(secret))
    claimed = str(document.get("address", wallet.address.hex())).removeprefix("0x").lower()
    if claimed != wallet.address.hex():
        raise ChainError(ChainErrorCode.KEY_MALFORMED, "the key file names another address than its key has")
    return wallet


def _parse(content: bytes) -> dict[str, Any]:
    """A keystore v3 document whose key derivation is within bounds."""
    try:
        document = {key.lower(): value for key, value in json.loads(content).items()}
        crypto = document["crypto"]
        if document["version"] != 3 or not _is_bounded(crypto["kdf"], crypto["kdfparams"]):
            raise ChainError(ChainErrorCode.KEY_MALFORMED)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ChainError(ChainErrorCode.KEY_MALFORMED) from None
    return document


def _is_bounded(kdf: str, parameters: Mapping[str, Any]) -> bool:
    if kdf == "scrypt":
        n, r, p, length = (int(parameters[name]) for name in ("n", "r", "p", "dklen"))
        return 1 < n <= MAX_SCRYPT_N and n & (n - 1) == 0 and min(r, p) > 0 and r * p <= MAX_SCRYPT_RP and length == 32
    return kdf == "pbkdf2" and 0 < int(parameters["c"]) <= MAX_PBKDF2_C and int(parameters["dklen"]) == 32


def _read(path: Path) -> bytes:
    return read_private(path, MAX_FILE_BYTES, ChainErrorCode.KEY_NOT_FOUND)
