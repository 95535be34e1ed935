"""The contracts' own tests, run by forge: unit, fuzz, invariants, shared vectors, gas, coverage, seeded faults."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).parents[3] / "contracts"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str, **variables: str) -> str:
    """Standard output of a command in contracts/. Fails the test when the command fails."""
    done = subprocess.run(
        command, cwd=CONTRACTS, env=os.environ | variables, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_every_contract_test_passes() -> None:
    summary = re.search(r"(\d+) tests passed, 0 failed, 0 skipped", run("bin/forge", "test"))
    assert summary
    assert int(summary[1]) > 120


def test_gas_is_what_was_committed() -> None:
    run("bin/forge", "test", "--match-contract", "GasTest", FORGE_SNAPSHOT_CHECK="true")


def test_coverage_reaches_98_percent_of_lines_and_95_of_branches() -> None:
    assert "| Total" in run("node", "scripts/coverage.mjs")


def test_every_seeded_fault_is_noticed() -> None:
    run("node", "scripts/mutate.mjs")


def test_sources_are_formatted() -> None:
    run("bin/forge", "fmt", "--check")
