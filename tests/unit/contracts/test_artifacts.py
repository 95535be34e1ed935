"""The committed contract artifacts: built from these sources, byte for byte, and fit for the chain package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from openlora_node.protocol.crypto import keccak256
from openlora_node.protocol.eip712 import type_string
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.structs import Receipt, Voucher

REPOSITORY = Path(__file__).parents[3]
CONTRACTS = REPOSITORY / "contracts"
ARTIFACTS = REPOSITORY / "chain" / "openlora_chain" / "artifacts"
NAMES = ("ArtifactRegistry", "Credits", "NodeRegistry", "ReceiptAnchor", "Settlement", "TimelockController")
LARGEST_RUNTIME = 24_576

needs_compiler = pytest.mark.skipif(
    shutil.which("node") is None or not (CONTRACTS / "node_modules" / "solc").is_dir(),
    reason="the compiler is not installed: run `npm ci` in contracts",
)


def artifact(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ARTIFACTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def source_digest() -> str:
    """As contracts/scripts/artifacts.mjs computes it."""
    sources = [path.relative_to(CONTRACTS).as_posix() for path in (CONTRACTS / "src").rglob("*.sol")]
    digest = sha256()
    for path in sorted([*sources, "package-lock.json"]):
        digest.update(f"{path}\0{(CONTRACTS / path).read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()


def signature(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(_type(item) for item in entry['inputs'])})"


def _type(item: dict[str, Any]) -> str:
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_type(part) for part in item['components'])}){kind.removeprefix('tuple')}"


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "scripts/artifacts.mjs", "--check"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_every_contract_has_an_artifact_and_nothing_else_lies_there() -> None:
    assert {path.stem for path in ARTIFACTS.glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_is_built_from_the_sources_that_stand_here(name: str) -> None:
    assert artifact(name)["sourceSha256"] == source_digest(), "run `npm run artifacts` in contracts"


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_is_complete(name: str) -> None:
    made = artifact(name)
    runtime = bytes.fromhex(made["deployedBytecode"].removeprefix("0x"))
    assert made["contractName"] == name
    assert made["compiler"].startswith("0.8.37+commit.")
    assert 0 < len(runtime) <= LARGEST_RUNTIME, "EIP-170"
    assert len(bytes.fromhex(made["bytecode"].removeprefix("0x"))) > len(runtime)
    for start, length in made["immutables"]:
        assert runtime[start : start + length] == bytes(length), "an immutable's place is empty before deployment"


def test_one_selector_names_one_error() -> None:
    names: dict[bytes, set[str]] = {}
    for name in NAMES:
        for entry in artifact(name)["abi"]:
            if entry["type"] == "error":
                names.setdefault(keccak256(signature(entry).encode())[:4], set()).add(signature(entry))
    assert names
    assert all(len(signatures) == 1 for signatures in names.values())


def test_the_signed_types_are_the_protocols() -> None:
    source = (CONTRACTS / "src" / "lib" / "Types.sol").read_text(encoding="utf-8")
    quoted = set(re.findall(r'"([A-Z]\w*\([^"]*\))"', source))
    assert {type_string(struct) for struct in (Voucher, Receipt, Pipeline, Adapter)} <= quoted


def test_the_lockfile_names_no_registry() -> None:
    lock = json.loads((CONTRACTS / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all("resolved" not in package and "integrity" in package for package in packages)


@needs_compiler
@pytest.mark.slow
def test_the_sources_compile_to_the_committed_bytes() -> None:
    result = check(CONTRACTS)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_compiler
@pytest.mark.slow
def test_the_check_notices_a_changed_source_and_a_changed_artifact(tmp_path: Path) -> None:
    copy = tmp_path / "contracts"
    for folder in ("src", "scripts"):
        shutil.copytree(CONTRACTS / folder, copy / folder)
    shutil.copy(CONTRACTS / "package-lock.json", copy)
    (copy / "node_modules").symlink_to(CONTRACTS / "node_modules", target_is_directory=True)
    target = tmp_path / "chain" / "openlora_chain" / "artifacts"
    shutil.copytree(ARTIFACTS, target)
    (target / "Extra.json").write_text("{}", encoding="utf-8")
    source = copy / "src" / "Settlement.sol"
    source.write_text(source.read_text(encoding="utf-8").replace("1_000;", "1_001;", 1), encoding="utf-8")
    result = check(copy)
    assert result.returncode == 1
    assert "Settlement.json is not" in result.stdout
    assert "Extra.json is not" in result.stdout
