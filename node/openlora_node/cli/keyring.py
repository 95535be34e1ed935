"""The key files of this machine: those that the configuration names and those of the data directory; never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.schema import Config

MAX_PEM_BYTES = 1 << 20


@dataclass(frozen=True)
class KeyFile:
    """One file. `kind`: node, payer, both where one file serves as either, tls, or other."""

    path: Path
    kind: str
    address: bytes | None = field(default=None)
    """20 bytes; None where the file does not tell, or is no wallet's."""
    encrypted: bool | None = field(default=None)
    """None where that cannot be seen."""
    problem: str = ""


def key_files(config: Config) -> list[KeyFile]:
    """What there is, the configured ones first, then those of the data directory's networks by name. Reads the disk."""
    configured = {config.node_keystore: "node"}
    configured[config.payer_keystore] = "node and payer" if config.payer_keystore in configured else "payer"
    asked = config.keys.keystore_file is not None
    found = [_look(path, kind) for path, kind in configured.items() if asked or path.exists() or path.is_symlink()]
    if config.api.tls_key_file is not None:
        found.append(_look_at_tls(config.api.tls_key_file))
    seen = {file.path for file in found}
    for path in _below(config.node.data_dir):
        if path not in seen:
            # A key of another network's node is a node's too; elsewhere the name says nothing.
            kind = {"node.json": "node", "payer.json": "payer"}.get(path.name, "other")
            file = _look(path, kind)
            if file.problem or file.encrypted is not None:
                found.append(file)
    return found


def _below(data_dir: Path) -> Iterator[Path]:
    """Files in the networks' `keys` directories. What cannot be listed holds nothing for this user."""
    for folder in sorted(data_dir.glob("*/keys")):
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        yield from (path for path in entries if not path.name.startswith(".") and not path.is_dir())


def _look(path: Path, kind: str) -> KeyFile:
    """A keystore, or a bare key as `keys export` writes it. Any other file has neither address nor encryption."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError, ChainErrorCode
    from openlora_chain.files import read_private
    from openlora_chain.wallet import Wallet

    try:
        return KeyFile(path, kind, keystore.address_of(path), encrypted=True)
    except ChainError as error:
        if error.code is not ChainErrorCode.KEY_MALFORMED:
            return KeyFile(path, kind, problem=f"{error.code.value}: {error.message}")
        malformed = f"{error.code.value}: {error.message}"
    try:
        secret = keystore.parse_secret(read_private(path, 200, ChainErrorCode.KEY_NOT_FOUND).decode("ascii", "replace"))
        return KeyFile(
            path, kind, Wallet(secret).address, encrypted=False, problem="not encrypted: `openlora keys import`"
        )
    except ChainError:
        expected = kind != "other" or path.suffix == ".json"
        return KeyFile(path, kind, problem=malformed if expected else "")


def _look_at_tls(path: Path) -> KeyFile:
    from openlora_chain.errors import ChainError, ChainErrorCode
    from openlora_chain.files import read_private

    try:
        content = read_private(path, MAX_PEM_BYTES, ChainErrorCode.KEY_NOT_FOUND)
    except ChainError as error:
        return KeyFile(path, "tls", problem=f"{error.code.value}: {error.message}")
    return KeyFile(path, "tls", encrypted=b"ENCRYPTED" in content)
