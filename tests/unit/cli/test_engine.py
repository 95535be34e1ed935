"""`openlora engine`: the process becomes the engine, whose arguments, signals and exit code pass untouched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openlora_node.cli import engine
from openlora_node.cli.app import app

OPENLORA = [sys.executable, "-c", "from openlora_node.cli import main; main()"]
STAND_IN = """
import json, os, signal, sys
if "--fail" in sys.argv:
    sys.stderr.write("openlora engine: no such model\\n")
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}), flush=True)
signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which another package is the engine."""
    package = tmp_path / "openlora_engine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_arguments_signals_and_exit_code_are_the_engines(stand_in: dict[str, str]) -> None:
    arguments = ["--model", "DIR", "--port=0", "--json", "--unknown", "-x", "extra", "--", "a b", "ü"]
    with subprocess.Popen([*OPENLORA, "engine", *arguments], stdout=subprocess.PIPE, env=stand_in) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert started == {"pid": process.pid, "arguments": arguments}
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 7


def test_a_failure_passes_as_it_is(stand_in: dict[str, str]) -> None:
    result = subprocess.run([*OPENLORA, "engine", "--fail"], capture_output=True, env=stand_in, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, b"", b"openlora engine: no such model\n")


def test_nothing_in_the_current_folder_poses_as_the_engine(tmp_path: Path) -> None:
    (tmp_path / "openlora_engine.py").write_text("raise SystemExit(99)")
    (tmp_path / "argparse.py").write_text("raise SystemExit(99)")
    command = engine.command(["--version"])
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:16]) == (0, "openlora engine ")


def test_help_is_the_engines_own() -> None:
    result = CliRunner().invoke(app, ["engine", "--help"])
    assert result.exit_code == 0
    for flag in ("--model", "--adapters", "--host", "--port", "--uds", "--max-loras", "--api-key"):
        assert f"  {flag} " in result.stdout


def test_a_mistyped_flag_is_the_engines_to_refuse() -> None:
    result = subprocess.run([*OPENLORA, "engine", "--modle", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "unrecognized arguments: --modle" in result.stderr
