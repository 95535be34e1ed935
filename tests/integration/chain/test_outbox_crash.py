"""kill −9 between every two states of an intent: the next process loses nothing and pays nothing twice."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from openlora_chain.rpc import Rpc
from openlora_node.journal.outbox import JournalOutbox
from support.anvil import Bench
from support.journal import open_journal
from support.simchain import HOT

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[2]
COUNT = 3
STEPS = [
    ("outbox.submit", 2),
    ("outbox.attempt", 1),
    ("outbox.attempt", 3),
    ("outbox.signed", 2),
    ("before-send", 2),
    ("after-send", 1),
    ("after-send", 3),
    ("outbox.sent", 2),
    ("outbox.mined", 1),
    ("outbox.mined", 3),
    ("outbox.close", 1),
    ("outbox.close", 3),
    ("commit", 4),
    ("committed", 4),
    ("commit", 9),
    ("committed", 9),
]


async def work(journal: Path, url: str, step: str, nth: int, count: int = COUNT, first: int = 0) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.outbox_worker",
        str(journal),
        url,
        str(count),
        step,
        str(nth),
        str(first),
        cwd=TESTS,
    )
    return await process.wait()


@pytest.mark.parametrize(("step", "nth"), STEPS, ids=str)
async def test_a_killed_sender_is_continued(rpc: Rpc, anvil, tmp_path: Path, step: str, nth: int) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "node.sqlite"
    assert await work(path, anvil.url, step, nth) == -signal.SIGKILL
    assert await work(path, anvil.url, "never", 1) == 0
    async with open_journal(path) as journal:
        await Bench(rpc, JournalOutbox(journal)).check_paid_once(COUNT)
        await journal.check_integrity()
    assert await rpc.nonce(HOT.address) == COUNT


async def test_a_second_process_with_the_same_key_costs_nothing_but_time(rpc: Rpc, anvil, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ends = await asyncio.gather(
        work(tmp_path / "one.sqlite", anvil.url, "never", 1, count=6),
        work(tmp_path / "two.sqlite", anvil.url, "never", 1, count=6, first=100),
    )
    assert ends == [0, 0]
    for name, first in (("one", 0), ("two", 100)):
        async with open_journal(tmp_path / f"{name}.sqlite") as journal:
            await Bench(rpc, JournalOutbox(journal)).check_paid_once(6, first=first)
            await journal.check_integrity()
    assert await rpc.nonce(HOT.address) == 12
