"""The set-up: a second run has nothing to do and ends at once; what it cannot install it names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_second_run_does_nothing() -> None:
    stamp = (ROOT / ".venv/setup.stamp").stat().st_mtime_ns
    result = subprocess.run([ROOT / "scripts/setup.sh"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == ""
    assert (ROOT / ".venv/setup.stamp").stat().st_mtime_ns == stamp


def test_make_alone_prints_its_commands() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    for command in ("setup", "run", "test", "check", "bench", "bench-peers", "clean"):
        assert f"make {command} " in result.stdout


@pytest.mark.parametrize("user", ["nobody"])
def test_without_root_the_missing_packages_are_named(tmp_path: Path, user: str) -> None:
    """A tree of its own and a PATH without the compilers: nothing is installed, the command is printed."""
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "scripts", tree / "scripts")
    tools = tree / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "cat", "cut", "dirname", "id", "sha256sum", "apt-get", "make"):
        (tools / tool).symlink_to(shutil.which(tool) or f"/usr/bin/{tool}")
    fake_id = tools / "id"
    fake_id.unlink()
    fake_id.write_text("#!/bin/sh\necho 1000\n")
    fake_id.chmod(0o755)
    result = subprocess.run(
        [tree / "scripts/setup.sh"],
        env={"PATH": str(tools), "HOME": str(tmp_path), "USER": user},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "run as root: apt-get update && apt-get install -y --no-install-recommends gcc g++" in result.stderr
    assert "libgmp-dev" in result.stderr
    assert not (tree / ".venv").exists()
