"""`make run` as a newcomer sees it: the demo runs, its numbers add up, and it stops when told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "configs" / "demo" / "run.py")]


def figures(line: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?= wei| tokens)|\d[\d,]*(?= \+| =)", line)]


@pytest.mark.slow
def test_demo_adds_up_and_exits() -> None:
    result = subprocess.run(
        COMMAND, env=os.environ | {"DEMO": "once"}, capture_output=True, text=True, timeout=60, check=True
    )
    lines = result.stdout.splitlines()
    receipts = [figures(line.split("compute")[1]) for line in lines if line.startswith("receipt")]
    assert len(receipts) == 2
    for compute, royalties, fee in receipts:
        assert compute + royalties == fee > 0
    (redeemed,) = (figures(line)[0] for line in lines if line.startswith("redeem"))
    claims = [figures(line)[0] for line in lines if line.startswith("claim")]
    (dust,) = (figures(line)[1] for line in lines if "together" in line)
    assert redeemed == sum(fee for _, _, fee in receipts) == sum(claims) + dust
    assert len(claims) == 5
    assert all(claims)
    assert 0 <= dust < 5
    assert result.stdout.count("owed: 0 wei") == 2
    assert "both journals pass their integrity check (deep)" in result.stdout


@pytest.mark.slow
def test_demo_stays_up_until_it_is_told_to_stop() -> None:
    with subprocess.Popen([*COMMAND, "level"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("the node stays up" in line for line in process.stdout)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
