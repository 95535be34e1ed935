"""The layer contracts bite: a planted import of each forbidden kind fails the check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("node", "kernels", "chain")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder / package) for package in PACKAGES)}
    tool = Path(sys.executable).parent / "lint-imports"
    command = [str(tool), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("node/openlora_node/protocol/ids.py", "import openlora_node.journal"),
        ("node/openlora_node/config/planted.py", "import openlora_node.journal"),
        ("node/openlora_node/protocol/ids.py", "import torch"),
        ("node/openlora_node/journal/planted.py", "import web3"),
        ("node/openlora_node/journal/planted.py", "import libp2p"),
        ("node/openlora_node/cli/planted.py", "import openlora_engine"),
        ("node/openlora_engine/planted.py", "import openlora_node.protocol"),
        ("chain/openlora_chain/planted.py", "import openlora_node.protocol"),
        ("kernels/openlora_kernels/planted.py", "import openlora_engine"),
        ("node/openlora_node/a_room_without_a_layer.py", "import os"),
    ],
)
def test_planted_import_fails_the_check(tmp_path: Path, file: str, line: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path / file
    target.write_text((target.read_text() if target.exists() else "") + f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout
    assert "BROKEN" in result.stdout


@pytest.mark.slow
def test_the_tree_as_it_is_passes(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    result = lint(tmp_path)
    assert result.returncode == 0, result.stdout
