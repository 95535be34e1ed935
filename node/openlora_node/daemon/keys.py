"""Opens the node key: a file that the configuration names, else systemd's credential, else the file in the state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from openlora_chain import keystore, password
from openlora_chain.errors import ChainError
from openlora_chain.password import Password
from openlora_chain.wallet import Wallet

from ..config.schema import Config
from ..protocol.errors import ErrorCode, OpenLoraError

KEY_CREDENTIAL = "node-key"
PASSWORD_CREDENTIAL = "node-password"  # noqa: S105 - its name


async def open_node_key(config: Config, environment: Mapping[str, str] = os.environ) -> Wallet:
    """The node key. Raises KEY_FAILED with what to do."""
    try:
        if config.keys.keystore_file is None and _has(KEY_CREDENTIAL, environment):
            return await keystore.load_credential(KEY_CREDENTIAL, node_password(config, environment), environment)
        path = config.node_keystore
        if not path.exists():
            raise OpenLoraError(
                ErrorCode.KEY_FAILED, f"there is no node key {path.name}: make one with `openlora init`"
            )
        return await keystore.load(path, node_password(config, environment))
    except ChainError as error:
        raise OpenLoraError(ErrorCode.KEY_FAILED, f"node key: {error.message}") from None


def node_password(config: Config, environment: Mapping[str, str] = os.environ) -> Password:
    """Its password: the file named, systemd's credential, or a person at the terminal. Raises ChainError."""
    if config.keys.password_file is not None:
        return password.from_file(config.keys.password_file)
    if _has(PASSWORD_CREDENTIAL, environment):
        return password.from_credential(PASSWORD_CREDENTIAL, environment)
    return password.from_prompt("Password of the node key")


def node_address(config: Config, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The address that the key file claims, without its password; None where there is no such file or it is none."""
    try:
        if config.keys.keystore_file is None and _has(KEY_CREDENTIAL, environment):
            return keystore.credential_address(KEY_CREDENTIAL, environment)
        return keystore.address_of(config.node_keystore)
    except ChainError:
        return None


def _has(credential: str, environment: Mapping[str, str]) -> bool:
    """Whether the unit brings it; one that cannot be looked at counts, so that opening it says what is wrong."""
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    try:
        return bool(directory) and (Path(directory) / credential).is_file()
    except PermissionError:
        return True
