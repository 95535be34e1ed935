"""`make run` as a newcomer sees it: it runs, its numbers add up to the wei, it stays up, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = {
    "operator", "base owner", "pirate's owner", "haiku's, json's owner", "datasets' owner",
    "contributor 1", "contributor 2", "contributor 3", "treasury",
}  # fmt: skip


def wei(line: str) -> list[int]:
    """All amounts of a line."""
    return [int(number.replace(",", "")) for number in re.findall(r"(\d[\d,]*) wei", line)]


def started_by(process: subprocess.Popen[str]) -> set[int]:
    """The processes that the demo started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {int(pid) for pid in children}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_pays_everybody_to_the_wei_and_stays_up_until_it_is_told_to_stop() -> None:
    command = [sys.executable, str(ROOT / "configs" / "demo" / "run.py")]
    environment = {key: value for key, value in os.environ.items() if key != "DEMO"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        watch = threading.Timer(840, process.kill)
        watch.start()
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("stays up"):
                    break
            else:
                pytest.fail(process.stderr.read()[-3000:])
            check(lines)
            (endpoint,) = (line.split()[1] for line in lines if line.startswith("endpoint"))
            with urllib.request.urlopen(endpoint.removesuffix("/v1,") + "/healthz", timeout=10) as answer:
                assert answer.status == 200
            children = started_by(process)
            assert len(children) == 4  # the devnet, two nodes, the gateway
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0
            assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        finally:
            watch.cancel()
            process.kill()


def check(lines: list[str]) -> None:
    """Answers differ by adapter, receipts add up, everybody is paid, nothing is missing."""
    text = "\n".join(lines)
    assert "Arr" in text.split("(with pirate)")[1].split("(with haiku)")[0]
    assert '{"topic"' in text.split("(with json)")[1]
    receipts = [index for index, line in enumerate(lines) if line.startswith("receipt")]
    assert len(receipts) == 5
    fees = 0
    for index in receipts:
        fee, compute = wei(lines[index])
        royalties = 0
        for line in lines[index + 1 :]:
            if "royalty" not in line:
                break
            royalties += wei(line)[0]
        assert fee == compute + royalties
        fees += fee
    assert "Paris" in text.split("(0.7 pirate + 0.3 haiku)")[1].split("receipt")[0], "the mix answers too"
    redeemed = sum(wei(line)[0] for line in lines if line.startswith("redeemed") and "as vouchered" in line)
    earned = {}
    for line in lines:
        if line.startswith("earned"):
            before, after, difference = wei(line)
            assert after - before == difference
            earned[line[10:34].strip()] = difference
    by_use = {}
    for line in lines:
        if line.startswith("credited"):
            (amount,), role = wei(line), line.split(" to ")[1].split(",")[0]
            by_use[role] = by_use.get(role, 0) + amount
    assert by_use["contributor 2"], "what the json adapter says repeats its data"
    assert all(0 < amount <= earned[role] for role, amount in by_use.items())
    (together,) = (wei(line)[0] for line in lines if line.strip().startswith("together"))
    (dust,) = (wei(line)[1] for line in lines if "redeemed of the escrow" in line)
    assert set(earned) - {"operator 2"} == ROLES
    assert all(earned.values())
    assert sum(earned.values()) == together
    assert fees == redeemed == together + dust
    assert 0 <= dust <= 100
    assert any(line.startswith("anchored") for line in lines)
    assert any(line.startswith("explained") and "contributor 2" in line for line in lines)
    (first,) = re.findall(r"first answer (\d+) s", text)
    (whole,) = re.findall(r"^done +after (\d+) s", text, re.MULTILINE)
    assert int(first) < 240, "60 s on a machine that does nothing else; a suite runs beside it"
    assert int(whole) < 600
