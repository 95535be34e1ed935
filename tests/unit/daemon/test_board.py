"""The health board: since when each level holds, what is missing in one line, disk and clock judged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openlora_node.daemon import board as boards
from openlora_node.daemon.board import ESSENTIAL, Board, clock_health, disk_health, summary
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth

UP = [ServiceHealth(name, Level.UP) for name in sorted(ESSENTIAL)]


def test_since_moves_with_the_level_and_not_with_the_reason() -> None:
    now, level, reason = [100.0], [Level.UP], [""]
    board = Board(lambda: now[0])
    board.add("chain", lambda: ServiceHealth("anything", level[0], reason[0]))
    assert board.services() == (ServiceHealth("chain", Level.UP, "", 100),)
    now[0], level[0], reason[0] = 105.0, Level.DOWN, "no answer"
    assert board.service("chain") == ServiceHealth("chain", Level.DOWN, "no answer", 105)
    now[0], reason[0] = 110.0, "still none"
    assert board.service("chain") == ServiceHealth("chain", Level.DOWN, "still none", 105)


def test_a_probe_that_fails_is_a_service_that_is_down_and_quotes_nothing() -> None:
    board = Board()

    def refuse() -> ServiceHealth:
        raise OpenLoraError(ErrorCode.CHAIN_FAILED, "no endpoint")

    def fail() -> ServiceHealth:
        raise ValueError("hunter22")

    board.add("chain", refuse)
    board.add("engine", fail)
    chain, engine = board.services()
    assert (chain.level, chain.reason) == (Level.DOWN, "no endpoint")
    assert engine.level is Level.DOWN
    assert "hunter22" not in engine.reason
    assert board.service("nothing").level is Level.DOWN


def test_the_summary_names_the_first_thing_that_is_missing() -> None:
    assert summary(UP) == "serving"
    assert summary([*UP, ServiceHealth("reach", Level.DEGRADED, "relayed")]) == "serving, with reach impaired"
    down = [ServiceHealth("engine", Level.DOWN, "it crashed")]
    assert summary([*UP, *down]) == "not serving: engine is down: it crashed"
    assert summary(down, stopping="SIGTERM") == "stopping: SIGTERM"


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, Level.UP), (60, Level.UP), (61, Level.DOWN), (-599, Level.UP), (-700, Level.DEGRADED)]
)
def test_the_clock_is_judged_by_the_newest_block(ahead: int, level: Level) -> None:
    assert clock_health(1_000_000.0, 1_000_000 + ahead).level is level
    assert clock_health(1_000_000.0, None).level is Level.INITIALIZING


def test_the_disk_is_judged_by_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10 << 30]

    class Status:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return free[0]

    monkeypatch.setattr(boards.os, "statvfs", lambda _: Status())
    assert disk_health(tmp_path).level is Level.UP
    free[0] = 1 << 30
    assert disk_health(tmp_path).level is Level.DEGRADED
    free[0] = 1 << 20
    assert disk_health(tmp_path).level is Level.DOWN
    monkeypatch.undo()
    assert disk_health(tmp_path / "gone").level is Level.DOWN
    assert os.statvfs(tmp_path)
