"""SIGKILL at every step of the journal while requests are served: every receipt accounted for, none charged twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_node.journal import LedgerKey, Reader
from openlora_node.protocol.structs import ReceiptStatus
from support.serving_world import NODE, Payer, World

KILLER = Path(__file__).with_name("killer.py")
TESTS = Path(__file__).parents[2]
REQUESTS = 2


def check(path: Path, seen: list[str]) -> int:
    """Whatever the payer saw is in the journal, once, and the books add up. Returns how many receipts there are."""
    payer = Payer()
    with Reader(path) as reader:
        reader.check_integrity(deep=True)
        receipts = reader.receipts(NODE, 0, 100)
        assert len({one.receipt.value.request_digest for one in receipts}) == len(receipts) <= REQUESTS
        assert all(one.receipt.value.status == ReceiptStatus.COMPLETE for one in receipts)
        key = LedgerKey(payer.address, NODE, payer.address, World(path).pipeline.id)
        ledger = reader.ledger(key)
        assert ledger.fee == sum(one.receipt.value.fee for one in receipts)
        told = {line.split()[2] for line in seen if line.startswith("done")}
        assert told <= {one.digest.hex() for one in receipts}
        for one in receipts:
            assert reader.evidence(NODE, one.receipt.value.seq)
            assert reader.pipeline(one.receipt.value.pipeline_id) is not None
        settled = sum(line.startswith("settled") for line in seen)
        if settled == len(receipts):
            assert ledger.owed == 0
    return len(receipts)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_every_step_of_serving_every_receipt_is_accounted_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, KILLER, tmp_path],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    names = [life["name"] for life in lives]
    assert {"admit.requests", "receipt.receipts", "receipt.evidence", "voucher.ledgers", "committed"} <= set(names)
    assert len(lives) > 25
    for life in lives:
        seen, rest = life["seen"], life["rest"]
        assert not life["survived"], life["name"]
        before = check(tmp_path / f"{life['step']}.killed.sqlite", seen)
        assert check(tmp_path / f"{life['step']}.sqlite", rest) == REQUESTS >= before
        shown = [line for line in seen if line.startswith("done")]
        assert set(shown) <= set(rest), "a receipt that was shown is the receipt for ever"
        assert rest[-1] == "finished"
        with Reader(tmp_path / f"{life['step']}.sqlite") as reader:
            summary = reader.summary()
        assert (summary.receipts, summary.running, summary.interrupted) == (REQUESTS, 0, 0)
