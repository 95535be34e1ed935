"""`openlora config`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openlora_node.cli.app import app
from openlora_node.cli.exits import Exit
from openlora_node.config import loader
from openlora_node.config.catalog import KEYS
from openlora_node.config.engines import EachEngine
from openlora_node.config.leaks import where_it_belongs
from openlora_node.config.reference import reference

runner = CliRunner()


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/operator")
    monkeypatch.delenv("OPENLORA_CONFIG", raising=False)
    monkeypatch.setattr(loader, "SYSTEM_FILE", tmp_path / "no-such-system-file.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.yaml"
    path.write_text("network:\n  listen: [/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/2]\nlog: {level: debug}\n")
    return path


def rows(output: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in output.splitlines()}


def test_show_prints_every_key_on_one_line(file: Path) -> None:
    result = runner.invoke(app, ["config", "show", "--config", str(file)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["key", *(key.dotted for key in KEYS)]
    assert "\x1b" not in result.stdout
    # Brackets are values here, not rich's markup.
    assert "[/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/2]" in result.stdout


def test_show_sources_names_each_place(file: Path) -> None:
    result = runner.invoke(
        app,
        ["config", "show", "--sources", "--config", str(file), "--set", "limits.queue=7", "--set", "log.format=text"],
        env={"OPENLORA_ENGINE__GRACE": "10s"},
    )
    shown = rows(result.stdout)
    assert shown["log.level"] == ["debug", f"{file}:3"]
    assert shown["network.listen"][-1] == f"{file}:2"
    assert shown["limits.queue"] == ["7", "--set"]
    assert shown["log.format"] == ["text", "--set"]
    assert shown["engine.grace"] == ["10s", "OPENLORA_ENGINE__GRACE"]
    assert shown["engine.spawn"] == ["true", "default"]
    assert shown["node.data_dir"] == ["/home/operator/.openlora", "default"]


def test_show_as_json(file: Path) -> None:
    arguments = ["config", "show", "--json", "--config", str(file)]
    shown = json.loads(runner.invoke(app, arguments).stdout)
    assert shown["file"] == str(file)
    values = {item["key"]: item["value"] for item in shown["settings"]}
    assert values["limits.queue"] == 64
    assert values["engine.spawn"] is True
    assert values["engine.url"] is None
    assert values["engine.grace"] == "30s"
    assert values["network.listen"] == ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/2"]
    assert all("source" not in item for item in shown["settings"])
    with_sources = json.loads(runner.invoke(app, [*arguments, "--sources"]).stdout)
    assert {item["key"]: item["source"] for item in with_sources["settings"]}["log.level"] == f"{file}:3"


def test_check_of_a_good_configuration(file: Path) -> None:
    result = runner.invoke(app, ["config", "check", "--config", str(file)])
    assert (result.exit_code, result.stdout) == (0, f"valid: {file}, 2 of {len(KEYS)} keys set\n")
    result = runner.invoke(app, ["config", "check"])
    assert (result.exit_code, result.stdout) == (0, f"valid: no file, 0 of {len(KEYS)} keys set\n")
    result = runner.invoke(app, ["config", "check", "--json", "--config", str(file)])
    assert json.loads(result.stdout) == {"ok": True, "file": str(file), "keys": len(KEYS), "set": 2}


@pytest.mark.parametrize("command", ["check", "show"])
def test_every_problem_is_one_line_and_the_exit_code_3(file: Path, command: str) -> None:
    file.write_text("log:\n  level: loud\nkeys:\n  password: hunter22\n")
    arguments = ["config", command, "--config", str(file), "--set", "limits.queue=0"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == Exit.CONFIG
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"openlora: {file}:2: log.level: write debug or info or warning or error",
        f"openlora: {file}:4: keys.password: holds a secret: {where_it_belongs('password')}",
        "openlora: --set: limits.queue: write a whole number from 1 to 100000",
    ]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == Exit.CONFIG
    assert result.stderr == ""
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "CONFIG_SECRET"
    assert error["message"] == f"{file}:2: log.level: write debug or info or warning or error (and 2 more)"
    assert [(item["place"], item["key"], item["code"]) for item in error["problems"]] == [
        (f"{file}:2", "log.level", "CONFIG_INVALID"),
        (f"{file}:4", "keys.password", "CONFIG_SECRET"),
        ("--set", "limits.queue", "CONFIG_INVALID"),
    ]


def test_reference_is_the_page() -> None:
    assert runner.invoke(app, ["config", "reference"]).stdout == reference()
    entries = json.loads(runner.invoke(app, ["config", "reference", "--json"]).stdout)
    assert [entry["variable"] for entry in entries if entry["variable"]] == [key.env for key in KEYS]
    without = [entry["key"] for entry in entries if not entry["variable"]]
    assert without == [f"engines.NAME.{name}" for name in EachEngine.model_fields]
