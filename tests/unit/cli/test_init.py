"""`openlora init`: a node from nothing without a question, nothing replaced, nothing half made."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from openlora_chain import keystore, password
from openlora_node.cli.app import app
from openlora_node.cli.exits import Exit
from openlora_node.config import load
from openlora_node.daemon import setup

runner = CliRunner()
OWNER = "0x" + "ab" * 20


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt as weak as it goes: these keys guard nothing."""
    real = keystore.create

    async def create(path: Path, secret: password.Password, **_: int) -> object:
        return await real(path, secret, work_factor=2)

    monkeypatch.setattr(keystore, "create", create)
    monkeypatch.delenv("OPENLORA_CONFIG", raising=False)


def init(tmp_path: Path, *more: str) -> list[str]:
    return [
        "init", "--config", str(tmp_path / "node.yaml"), "--data-dir", str(tmp_path / "data"),
        "--password-file", str(tmp_path / "secrets/password"), *more,
    ]  # fmt: skip


def test_one_command_makes_everything_and_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    flags = [
        "--owner",
        OWNER,
        "--model",
        str(tmp_path / "model"),
        "--rpc",
        "http://127.0.0.1:1",
        "--rpc",
        "http://[::1]:2",
    ]
    result = runner.invoke(app, init(tmp_path, *flags, "--set", "network.listen=[/ip4/127.0.0.1/tcp/4002]", "--json"))
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    config = load(tmp_path / "node.yaml", environ={}).config
    assert config.node.data_dir == tmp_path / "data"
    assert config.node.owner == bytes.fromhex("ab" * 20)
    assert config.engine.model == str(tmp_path / "model")
    assert config.chain.rpc_urls == ("http://127.0.0.1:1", "http://[::1]:2")
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/4002",)
    assert keystore.address_of(config.node_keystore) == bytes.fromhex(made["address"][2:].lower())
    assert stat.S_IMODE(config.node_keystore.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets/password").stat().st_mode) == 0o600
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == stat.S_IMODE(config.node.data_dir.stat().st_mode) == 0o700
    assert len((tmp_path / "secrets/password").read_text().strip()) >= 32


def test_the_file_keeps_its_remarks_and_holds_no_secret(tmp_path: Path) -> None:
    assert runner.invoke(app, init(tmp_path)).exit_code == 0
    text = (tmp_path / "node.yaml").read_text()
    assert "# Prices of 1,000,000 tokens" in text
    assert (tmp_path / "secrets/password").read_text().strip() not in text
    assert yaml.safe_load(text)["node"]["network"] == "devnet"


def test_it_says_what_comes_next(tmp_path: Path) -> None:
    result = runner.invoke(app, init(tmp_path))
    for command in ("openlora operator register", "openlora doctor", "openlora run"):
        assert command in result.stdout


def test_again_it_replaces_nothing(tmp_path: Path) -> None:
    assert runner.invoke(app, init(tmp_path)).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = runner.invoke(app, init(tmp_path))
    assert result.exit_code == Exit.CONFIG
    assert "exists" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_key_that_is_there_is_kept(tmp_path: Path) -> None:
    first = json.loads(runner.invoke(app, init(tmp_path, "--json")).stdout)
    (tmp_path / "node.yaml").unlink()
    second = json.loads(runner.invoke(app, init(tmp_path, "--json")).stdout)
    assert (first["newKey"], second["newKey"]) == (True, False)
    assert first["address"] == second["address"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--owner", "0x12"],
        ["--set", "node.netwrok=devnet"],
        ["--set", "pricing.input=cheap"],
        ["--model", "/nonexistent/model"],
        ["--set", "api.health_listen=0.0.0.0:1"],
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, flags: list[str]) -> None:
    result = runner.invoke(app, init(tmp_path, *flags))
    assert result.exit_code == Exit.CONFIG, result.output
    assert not list(tmp_path.iterdir())


def test_a_deployment_file_is_checked_and_copied(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    result = runner.invoke(app, init(tmp_path, "--deployment", str(bad)))
    assert result.exit_code == Exit.CHAIN
    assert not (tmp_path / "data").exists()


def test_for_the_units_state_key_and_sockets_lie_where_they_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "etc/keys/node.json"
    monkeypatch.setattr(setup, "SERVICE_KEY", key)
    monkeypatch.setitem(setup.SERVICE, "node.data_dir", str(tmp_path / "lib"))
    result = runner.invoke(app, ["init", "--service", "--config", str(tmp_path / "etc/node.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    config = load(tmp_path / "etc/node.yaml", environ={}).config
    assert not config.engine.spawn
    assert str(config.all_engines[0].socket) == "/run/openlora-engine/engine.sock"
    assert config.keys.password_file is None, "the unit brings it as a credential"
    assert key.exists()
    assert stat.S_IMODE(key.with_name("node.password").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "etc/node.yaml").stat().st_mode) & 0o444 == 0o444


def test_without_a_terminal_and_a_password_file_it_says_so(tmp_path: Path) -> None:
    result = runner.invoke(app, ["init", "--config", str(tmp_path / "node.yaml"), "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == Exit.KEY
    assert "password" in result.stderr.lower()
    assert not (tmp_path / "node.yaml").exists()
