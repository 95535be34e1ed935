"""The units: valid for systemd, exposed no more than promised, written only where nothing else stands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openlora_node.cli.app import app
from openlora_node.cli.exits import Exit
from openlora_node.cli.service import LIMITS
from openlora_node.daemon.templates import PROGRAM, UNITS, Unit, render_config, render_unit, unit_name

runner = CliRunner()
ROOT = Path(__file__).parents[3]
HARMLESS = Path(shutil.which("true") or "/bin/true")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Unit, tmp_path: Path) -> None:
    for name in UNITS:  # all: they name each other
        (tmp_path / unit_name(name)).write_text(render_unit(name, HARMLESS))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit_name(unit, "one" if unit == "engine@" else "")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "openlora" in line]
    assert (done.returncode, complaints) == (0, [])


def test_a_wrong_unit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "openlora-node.service"
    path.write_text(render_unit("node", HARMLESS).replace("Restart=on-failure", "Restart=sometimes"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert "restart specifier" in done.stderr


def test_all_units_keep_below_their_exposure() -> None:
    result = runner.invoke(app, ["service", "score", "--json"])
    assert result.exit_code == Exit.OK, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"node", "engine", "engine@"}
    for unit, limit in {"node": 1.5, "engine": 2.0, "engine@": 2.0}.items():
        assert found[unit]["exposure"] <= limit == LIMITS[unit]


def test_without_its_sandbox_a_unit_is_too_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(unit: Unit, command: Path) -> str:
        return f"[Service]\nExecStart={command} {unit}\n"

    monkeypatch.setattr("openlora_node.daemon.templates.render_unit", bare)
    result = runner.invoke(app, ["service", "score"])
    assert result.exit_code == Exit.REFUSED
    assert "too exposed" in result.stdout


def test_the_engine_holds_no_key_and_has_no_network() -> None:
    engine = render_unit("engine", Path(PROGRAM))
    assert "LoadCredential" not in engine
    assert "PrivateNetwork=yes" in engine
    assert re.findall(r"^RestrictAddressFamilies=(.*)$", engine, re.MULTILINE) == ["AF_UNIX"]
    assert re.findall(r"^StateDirectory=(.*)$", engine, re.MULTILINE) == ["openlora-artifacts"]
    assert "RestartPreventExitStatus=2 3 7" in engine
    assert "PrivateDevices=yes" in render_unit("node", Path(PROGRAM))


def test_install_writes_all_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    arguments = ["service", "install", "--dir", str(tmp_path), "--program", "/opt/openlora/bin/openlora"]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    node = tmp_path / "openlora-node.service"
    engines = [str(tmp_path / f"openlora-{name}.service") for name in ("engine", "engine@")]
    assert json.loads(result.stdout)["written"] == [str(node), *engines]
    assert "ExecStart=/opt/openlora/bin/openlora run" in node.read_text()
    assert runner.invoke(app, arguments).exit_code == 0, "the same again is no conflict"
    node.write_text("# mine\n")
    refused = runner.invoke(app, arguments)
    assert refused.exit_code == Exit.CONFIG
    assert node.read_text() == "# mine\n"
    assert runner.invoke(app, [*arguments, "--force"]).exit_code == 0
    assert (
        node.read_text()
        == runner.invoke(app, ["service", "print", "node", "--program", "/opt/openlora/bin/openlora"]).stdout
    )


def test_one_of_several_engines_differs_from_the_only_one_in_its_name_alone() -> None:
    """Sandbox and limits are the same; what is named after the engine is named after the instance."""

    def settings(unit: Unit) -> list[str]:
        lines = render_unit(unit, Path(PROGRAM)).splitlines()
        return [
            line for line in lines if not line.startswith("#") and line != "Environment=CUDA_DEVICE_ORDER=PCI_BUS_ID"
        ]

    only, several = settings("engine"), settings("engine@")
    assert [line.replace("-%i", "").replace(" %i", "") for line in several] == only
    named = [line.partition("=")[0] for line, other in zip(several, only, strict=True) if line != other]
    assert named == ["Description", "EnvironmentFile", "Environment", "ExecStart", "CacheDirectory", "RuntimeDirectory"]


@pytest.mark.parametrize("place", ["/home/me/.venv/bin/openlora", "/root/openlora", "/tmp/x/openlora"])
def test_a_program_that_the_sandbox_hides_is_refused_with_the_way_out(place: str) -> None:
    result = runner.invoke(app, ["service", "print", "node", "--program", place])
    assert result.exit_code == Exit.CONFIG
    assert "/opt/openlora" in result.stderr


def test_a_configuration_is_filled_in_where_the_keys_stand() -> None:
    import yaml

    text = render_config({"node.data_dir": "/srv/x", "api.signed_listen": '"[::1]:9472"', "engine.model": "/srv/m"})
    parsed = yaml.safe_load(text)
    assert parsed["node"] == {"data_dir": "/srv/x"}
    assert parsed["api"] == {"signed_listen": "[::1]:9472"}
    assert parsed["engine"] == {"model": "/srv/m"}
    plain = (ROOT / "configs/operator.yaml").read_text()
    assert len(text.splitlines()) == len(plain.splitlines()), "nothing else moved"
