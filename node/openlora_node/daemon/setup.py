"""A node from nothing: the configuration, the data directory, the key, and the password file where one is asked for."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openlora_chain import keystore, password
from openlora_chain.deployment import load_deployment
from openlora_chain.errors import ChainError
from openlora_chain.files import write_new
from openlora_chain.keystore import SCRYPT_N
from openlora_chain.password import Password

from ..config import load
from ..config.schema import Config
from ..protocol.errors import ErrorCode, OpenLoraError
from .templates import render_config

SERVICE = {
    "node.data_dir": "/var/lib/openlora",
    "engine.spawn": "false",
    "engine.socket": "/run/openlora-engine/engine.sock",
    "engine.adapters_dir": "/var/lib/openlora-artifacts",
}
"""What differs for the two units in systemd/."""
SERVICE_CONFIG = Path("/etc/openlora/node.yaml")
SERVICE_KEY = Path("/etc/openlora/keys/node.json")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make. `values` are `section.key` to the text of the value; `password_file` None asks a person."""

    config_file: Path
    values: Mapping[str, str]
    password_file: Path | None = None
    deployment: Path | None = None
    service: bool = False
    """For the units: the key lies where they load it from, state and sockets where they make them."""


@dataclass(frozen=True, slots=True)
class Made:
    """What `init` made or found: where, and the node key's address (20 bytes)."""

    config_file: Path
    data_dir: Path
    keystore: Path
    address: bytes
    new_key: bool


async def set_up(wanted: Wanted, *, work_factor: int = SCRYPT_N) -> Made:
    """Make what is missing, replace nothing. Raises CONFIG_INVALID, KEY_FAILED, DATADIR_UNSAFE, STORAGE_*.

    Everything is checked before anything is written; a key that is there already is kept.
    """
    if wanted.config_file.exists():
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID,
            f"{wanted.config_file} exists: edit it, or name another file with --config; nothing was changed",
        )
    values = {**(SERVICE if wanted.service else {}), **wanted.values}
    key_password_file = wanted.password_file
    if wanted.service and key_password_file is None:
        key_password_file = SERVICE_KEY.with_name("node.password")
    if key_password_file is not None and not wanted.service:
        values["keys.password_file"] = str(key_password_file)
    if wanted.service and wanted.deployment is not None:
        values["chain.deployment_file"] = str(wanted.config_file.with_name("deployment.json"))
    config, text = _checked(values)
    deployment = _deployment(wanted.deployment)
    path = SERVICE_KEY if wanted.service else config.node_keystore
    try:
        secret = _password(key_password_file, path)
        if not wanted.service:  # a service's directories are made by systemd, for the user that it makes
            _private_directory(config.node.data_dir)
            _private_directory(config.state_dir)
        address, new = await _key(path, secret, work_factor)
        if deployment is not None:
            config.deployment_file.write_bytes(deployment)
        _write(wanted.config_file, text)
    except ChainError as error:
        raise OpenLoraError(ErrorCode.KEY_FAILED, f"node key: {error.message}") from None
    except OSError as error:
        where = error.filename or wanted.config_file
        raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, f"{where} cannot be written: run this as its owner") from None
    return Made(wanted.config_file, config.state_dir, path, address, new)


def free_space(config: Config) -> int:
    """Bytes free where the state lies, or will lie."""
    place = config.state_dir
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _checked(values: Mapping[str, str]) -> tuple[Config, str]:
    """The configuration with these values and nothing else, and the file that says so. Raises ConfigError."""
    with tempfile.NamedTemporaryFile(prefix="openlora-", suffix=".yaml") as empty:
        loaded = load(Path(empty.name), environ={}, flags=[f"{name}={value}" for name, value in values.items()])
    chosen = [setting for setting in loaded.settings if setting.key.dotted in values]
    # JSON is YAML, whatever brackets and colons a value holds.
    return loaded.config, render_config(
        {setting.key.dotted: json.dumps(setting.key.as_json(setting.value)) for setting in chosen}
    )


def _deployment(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        load_deployment(file)
        return file.read_bytes()
    except ChainError as error:
        raise OpenLoraError(ErrorCode.CHAIN_FAILED, error.message) from None


def _password(file: Path | None, key: Path) -> Password:
    """From the file, made up into it where there is none, or asked for. Not asked for twice where the key exists."""
    if file is None:
        return password.from_prompt("Password of the node key", confirm=not key.exists())
    if not file.exists():
        _private_directory(file.parent)
        write_new(file, f"{secrets.token_urlsafe(32)}\n".encode())
    return password.from_file(file)


async def _key(path: Path, secret: Password, work_factor: int) -> tuple[bytes, bool]:
    if path.exists():  # noqa: ASYNC240 - a command, no server
        return (await keystore.load(path, secret)).address, False
    _private_directory(path.parent)
    return (await keystore.create(path, secret, work_factor=work_factor)).address, True


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, text: str) -> None:
    """Readable by all: it holds no secret, and the service reads it as another user."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
        file.write(text)
