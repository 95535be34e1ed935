"""Rules for the whole suite: hypothesis profiles, and no skipped test that is not on the list with its reason."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import openlora_chain  # noqa: F401 - keeps the recursion limit, whatever else a test imports (recursion.py there)

# Before torch is imported: on a busy machine its idle threads would spin away the cores (openlora_kernels/openmp.py).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

TESTS = Path(__file__).parent
WITH_PROCESSES = ("integration", "interop", "e2e")
"""Real processes, networks and chains: a machine with two busy cores is late now and then."""
RERUNS = int(os.environ.get("RERUNS", "2"))
ALLOWED_SKIPS = TESTS / "allowed_skips.toml"

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class SkipList:
    """Fails the session when a test was skipped that allowed_skips.toml does not name."""

    def __init__(self, allowed: dict[str, str]) -> None:
        self._allowed = allowed
        self._unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note skips (expected failures count as neither)."""
        if report.skipped and not hasattr(report, "wasxfail") and report.nodeid.split("[")[0] not in self._allowed:
            self._unlisted.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note whole modules that skip themselves."""
        if report.skipped and report.nodeid not in self._allowed:
            self._unlisted.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn an unlisted skip into a failure."""
        if self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which."""
        for nodeid in self._unlisted:
            terminalreporter.write_line(f"SKIPPED WITHOUT LEAVE {nodeid}: add it to tests/allowed_skips.toml", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Install the skip list."""
    allowed = tomllib.loads(ALLOWED_SKIPS.read_text(encoding="utf-8"))["skips"]
    config.pluginmanager.register(SkipList(allowed), "skip-list")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of real processes two more tries (RERUNS=0: none), each counted in the summary. Units have none."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in WITH_PROCESSES:
            item.add_marker(pytest.mark.flaky(reruns=RERUNS))
