"""`openlora keys list`: every key file with its address, what it is for and whether a password guards it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openlora_chain import keystore
from openlora_chain.password import Password
from openlora_node.cli.app import app
from openlora_node.config import loader
from openlora_node.protocol.ids import format_address
from support.chain_world import fresh_wallet


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENLORA_CONFIG", raising=False)
    monkeypatch.setattr(loader, "SYSTEM_FILE", tmp_path / "no-such-system-file.yaml")


def listed(home: Path, *sets: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["keys", "list", "--json", *options(home, *sets)])
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def options(home: Path, *sets: str) -> list[str]:
    return [word for one in (f"node.data_dir={home}", *sets) for word in ("--set", one)]


def key(path: Path, label: str) -> str:
    """A key file of this label; its address."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    wallet = fresh_wallet(label)
    asyncio.run(keystore.store(path, wallet.reveal(), Password("correct horse"), work_factor=2))
    return format_address(wallet.address)


def test_every_key_with_its_use_and_no_secret(tmp_path: Path) -> None:
    keys = tmp_path / "devnet/keys"
    node, payer, spare = (key(keys / f"{name}.json", f"list {name}") for name in ("node", "payer", "spare"))
    other = key(tmp_path / "openledger/keys/node.json", "list other network")
    bare, secret = keys / "exported", fresh_wallet("list bare").reveal().hex()
    bare.write_text(f"0x{secret}\n")
    (keys / "password").write_text("correct horse\n")
    for file in (bare, keys / "password"):
        file.chmod(0o600)
    (keys / "open.json").write_text("{}")
    (keys / "open.json").chmod(0o644)
    (keys / "damaged.json").write_text("{}")
    (keys / "damaged.json").chmod(0o600)
    tls = tmp_path / "tls.pem"
    tls.write_text("-----BEGIN PRIVATE KEY-----\n")
    tls.chmod(0o600)
    rows = {row["file"].removeprefix(str(tmp_path)): row for row in listed(tmp_path, f"api.tls_key_file={tls}",
            f"api.tls_certificate_file={tls}")}  # fmt: skip
    assert [(row["address"], row["kind"], row["encrypted"], row["problem"]) for row in rows.values()][:3] == [
        (node, "node", True, ""),
        (payer, "payer", True, ""),
        (None, "tls", False, ""),
    ]
    assert (rows["/devnet/keys/spare.json"]["address"], rows["/devnet/keys/spare.json"]["kind"]) == (spare, "other")
    assert rows["/openledger/keys/node.json"]["address"] == other
    exported = rows["/devnet/keys/exported"]
    assert exported["address"] == format_address(fresh_wallet("list bare").address)
    assert exported["encrypted"] is False
    assert "not encrypted" in exported["problem"]
    assert rows["/devnet/keys/open.json"]["problem"].startswith("KEY_UNSAFE")
    assert rows["/devnet/keys/damaged.json"]["problem"].startswith("KEY_MALFORMED")
    assert "/devnet/keys/password" not in rows, "a password is no key"
    text = CliRunner().invoke(app, ["keys", "list", *options(tmp_path)]).output
    assert node in text
    assert secret not in text + json.dumps(list(rows.values()))
    assert "correct horse" not in text


def test_the_configured_file_is_node_and_payer_and_is_missed_when_it_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "hot.json"
    address = key(file, "list hot")
    (row,) = listed(tmp_path / "data", f"keys.keystore_file={file}")
    assert (row["address"], row["kind"], row["file"]) == (address, "node and payer", str(file))
    (row,) = listed(tmp_path / "data", f"keys.keystore_file={tmp_path / 'gone.json'}")
    assert row["problem"].startswith("KEY_NOT_FOUND")


def test_without_any_it_says_how_to_make_one(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    result = CliRunner().invoke(app, ["keys", "list", *options(tmp_path)])
    assert (result.exit_code, "openlora keys new" in result.output) == (0, True)
