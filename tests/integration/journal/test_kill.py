"""SIGKILL before every write, before and after every COMMIT: what was acknowledged is there, nothing is doubled."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_node.journal import Reader
from openlora_node.protocol.errors import OpenLoraError
from support.journal import NODE, digest_of, key_of, request

WORKLOAD = Path(__file__).with_name("workload.py")
TESTS = Path(__file__).parents[2]
RECEIPTS = 3


def run(path: Path, step: int) -> tuple[bool, list[str]]:
    """Whether the workload came to its end, and what it acknowledged."""
    done = subprocess.run(
        [sys.executable, WORKLOAD, path, str(step)],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0, done.stdout.splitlines()


def check_acknowledged(path: Path, acknowledged: list[str]) -> None:
    """Everything acknowledged is in the journal, which is whole."""
    if not acknowledged:
        return
    with Reader(path) as reader:
        reader.check_integrity(deep=True)
        ledger, receipts = reader.ledger(key_of()), reader.receipts(NODE, 0, 100)
        assert len(receipts) == len({one.receipt.value.request_digest for one in receipts})
        assert ledger.fee == 35 * len(receipts)
        for line in acknowledged:
            what, _, number = line.partition(" ")
            if what == "receipt":
                assert reader.receipt(digest_of(request(int(number)))) is not None
            elif what == "admitted" and number != "99":
                assert reader.request_state(digest_of(request(int(number)))) is not None
            elif what == "voucher":
                assert ledger.voucher_value == 35 * RECEIPTS
            elif what == "redeemed":
                assert ledger.redeemed == 35 * RECEIPTS
            elif what == "pruned":
                assert reader.request_state(digest_of(request(99))) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_every_step_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    for step in range(1, 200):
        path = tmp_path / f"{step}.sqlite"
        survived, acknowledged = run(path, step)
        check_acknowledged(path, acknowledged)
        finished, rest = run(path, 0)
        assert finished
        assert rest[-1] == "pruned"
        check_acknowledged(path, rest)
        with Reader(path) as reader:
            summary = reader.summary()
            assert (summary.receipts, summary.running, summary.interrupted) == (RECEIPTS, 0, 0)
        if survived:
            break
    else:
        pytest.fail("the workload never survived")
    assert step > 30, "the walk passed every write of the workload"


def test_a_killed_first_opening_is_refused_by_a_reader_or_whole(tmp_path: Path) -> None:
    """Dying inside the first migration leaves no half schema, and the next start works."""
    path = tmp_path / "journal.sqlite"
    run(path, 2)
    with pytest.raises(OpenLoraError):
        Reader(path)
    assert run(path, 0)[0]
