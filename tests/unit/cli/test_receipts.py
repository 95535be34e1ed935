"""`openlora receipts` on a journal that real serving filled: list, show, export, and verify on what was exported."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from openlora_node.cli.app import app
from openlora_node.protocol.ids import format_address
from support.attribution_receipts import fill
from support.serving_world import NODE_KEY, Payer


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four receipts, long ago."""
    path = tmp_path_factory.mktemp("receipts") / "node.sqlite"
    asyncio.run(fill(path, [0, 1, 2, 3]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, ["receipts", *map(str, arguments)])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_prints_the_newest_first(journal: Path) -> None:
    rows = run_json("list", "--journal", journal, "--limit", 3)
    assert [row["seq"] for row in rows] == sorted((row["seq"] for row in rows), reverse=True)
    assert len(rows) == 3
    assert int(rows[0]["fee"]) == int(rows[0]["compute"]) + int(rows[0]["royalties"])
    text = run("list", "--journal", journal).output
    assert rows[0]["digest"][2:14] in text
    assert run_json("list", "--journal", journal, "--payer", format_address(Payer().address))
    assert run_json("list", "--journal", journal, "--payer", format_address(b"\x01" * 20)) == []


def test_show_names_who_earned_what(journal: Path) -> None:
    row = run_json("list", "--journal", journal)[0]
    for identity in (row["digest"], row["digest"][2:9], row["seq"]):
        shown = run_json("show", identity, "--journal", journal)
        assert shown["digest"] == row["digest"]
    assert run_json("show", shown["request"], "--journal", journal)["digest"] == row["digest"]
    parts = shown["attribution"]
    assert parts["base"].startswith("sha256:b0b0")
    assert parts["adapter/0"].startswith("sha256:a1a1")
    assert parts["adapter/0/weight"] == "7000"
    assert parts["adapter/0/dataset/0/bps"] == "4000"
    split = [int(value.split()[0]) for name, value in parts.items() if name.count("/") == 1 and "wei" in value]
    nested = [int(parts[name].split()[0]) for name in ("adapter/0/royalty", "adapter/1/royalty")]
    assert sum(split) + sum(nested) == int(shown["fee"])
    assert "adapter/0/dataset/0" in run("show", row["digest"], "--journal", journal).output


def test_what_is_exported_verifies_and_nothing_else_does(journal: Path, tmp_path: Path) -> None:
    row = run_json("list", "--journal", journal)[1]
    file = tmp_path / "bundle.json"
    exported = run_json("export", row["digest"], "--journal", journal, "--out", file)
    trusted = (
        "--root", exported["root"], "--key", format_address(NODE_KEY.address),
        "--chain-id", exported["chainId"], "--contract", exported["contract"],
    )  # fmt: skip
    assert exported["key"] == format_address(NODE_KEY.address)
    proven = run_json("verify", file, *trusted)
    assert (proven["ok"], proven["digest"], proven["fee"]) == (True, row["digest"], row["fee"])
    assert "proven" in run("verify", file, *trusted).output
    again = run("export", row["digest"], "--journal", journal, "--out", file)
    assert again.exit_code != 0
    file.write_bytes(file.read_bytes().replace(b'"status":"0"', b'"status":"1"'))
    assert run("verify", file, *trusted).exit_code == 4
    missing = run("verify", tmp_path / "none.json", *trusted)
    assert missing.exit_code == 8
    assert str(tmp_path) not in missing.output


@pytest.mark.parametrize("identity", ["zz", "0", "ffffffffffff", "", "1835008000000099"])
def test_what_names_no_receipt(journal: Path, identity: str) -> None:
    result = run("show", identity, "--journal", journal, "--json")
    assert result.exit_code == 8
    assert json.loads(result.stdout)["error"]["code"] in {"BAD_ID", "NOT_FOUND"}


def test_no_journal_is_one_line(tmp_path: Path) -> None:
    result = run("list", "--journal", tmp_path / "none.sqlite")
    assert result.exit_code == 8
    assert len((result.stderr or result.output).strip().splitlines()) == 1
