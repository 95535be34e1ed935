"""The node key: from the file named, from systemd's credentials, from the state; each refusal says what to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from openlora_chain import keystore
from openlora_chain.password import Password
from openlora_node.config.schema import Config
from openlora_node.daemon.keys import node_address, open_node_key
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

SECRET = bytes(31) + b"\x07"


def sealed(path: Path) -> bytes:
    """A key file that opens quickly; its address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return asyncio.run(keystore.store(path, SECRET, Password("opensesame"), work_factor=2)).address


def config(tmp_path: Path, **keys: str) -> Config:
    return Config.model_validate({"node": {"data_dir": str(tmp_path)}, "keys": keys})


def password_file(path: Path, text: str = "opensesame") -> str:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def test_the_file_in_the_state_and_a_password_file(tmp_path: Path) -> None:
    address = sealed(tmp_path / "devnet/keys/node.json")
    made = config(tmp_path, password_file=password_file(tmp_path / "password"))
    assert asyncio.run(open_node_key(made, {})).address == address == node_address(made, {})


def test_the_credentials_of_a_unit(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    address = sealed(credentials / "node-key")
    (credentials / "node-key").chmod(0o440)  # as systemd's ACL shows
    (credentials / "node-password").write_text("opensesame\n")
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    made = config(tmp_path)
    assert asyncio.run(open_node_key(made, environment)).address == address == node_address(made, environment)
    assert node_address(made, {}) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "openlora init"), ("{}", "keystore"), (json.dumps({"version": 3}), "keystore")],
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: str | None, text: str) -> None:
    made = config(tmp_path, password_file=password_file(tmp_path / "password"))
    if content is not None:
        made.node_keystore.parent.mkdir(parents=True)
        made.node_keystore.write_text(content)
        made.node_keystore.chmod(0o600)
    with pytest.raises(OpenLoraError) as caught:
        asyncio.run(open_node_key(made, {}))
    assert caught.value.code is ErrorCode.KEY_FAILED
    assert text in caught.value.message


def test_a_wrong_password_is_named(tmp_path: Path) -> None:
    sealed(tmp_path / "devnet/keys/node.json")
    made = config(tmp_path, password_file=password_file(tmp_path / "password", "wrong"))
    with pytest.raises(OpenLoraError, match="password") as caught:
        asyncio.run(open_node_key(made, {}))
    assert caught.value.code is ErrorCode.KEY_FAILED


def test_a_credential_that_is_too_large_is_no_key(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "node-key").write_bytes(b"x" * 100_000)
    (credentials / "node-password").write_text("opensesame\n")
    with pytest.raises(OpenLoraError):
        asyncio.run(open_node_key(config(tmp_path), {"CREDENTIALS_DIRECTORY": str(credentials)}))


def test_credentials_that_cannot_be_looked_at_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(OpenLoraError, match="no credential named node-password") as caught:
        asyncio.run(open_node_key(config(tmp_path), {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}))
    assert caught.value.code is ErrorCode.KEY_FAILED
