"""Many short requests through gateway, libp2p and engine: memory stays flat, no receipt is lost.

`OPENLORA_SOAK=100000 pytest tests/e2e/test_soak.py` is the long run, half an hour at most; the default is a short one.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from openai import APIError, AsyncOpenAI

from support.e2e_village import MODEL, Village, village

REQUESTS = int(os.environ.get("OPENLORA_SOAK", "600"))
LIMIT_S = 1800.0
AT_ONCE = 16
WARM = 0.5
"""Of the requests, after which memory is to stay where it is."""
GROWTH = 1.05 if REQUESTS >= 10_000 else 1.15


def rss(pid: int) -> int:
    """Resident memory of a process, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def memory(place: Village) -> dict[str, int]:
    """Of both daemons and the gateway."""
    assert place.gateway is not None
    found = {"gateway": rss(place.gateway.pid)}
    for operator in place.operators:
        found[operator.home.root.name] = rss(operator.running.process.pid)
    return found


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 300)
async def test_memory_stays_flat_and_no_receipt_is_lost(tmp_path: Path) -> None:
    async with village(tmp_path) as place, place.client() as client:
        began, done, failed = time.monotonic(), 0, 0
        warm: dict[str, int] = {}

        async def customer(client: AsyncOpenAI) -> None:
            nonlocal done, failed, warm
            while done < REQUESTS and time.monotonic() - began < LIMIT_S:
                done += 1
                try:
                    await client.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=2
                    )
                except APIError:
                    failed += 1
                if done >= WARM * REQUESTS and not warm:
                    warm = memory(place)

        async with asyncio.TaskGroup() as customers:
            for _ in range(AT_ONCE):
                customers.create_task(customer(client))
        end = memory(place)
        print(f"{done} requests in {time.monotonic() - began:.0f} s, {failed} refused; memory {warm} to {end}")
        assert failed <= done / 100
        for name, before in warm.items():
            assert end[name] <= GROWTH * before, name
        receipts = 0
        for operator in place.operators:
            with operator.journal() as reader:
                receipts += reader.summary().receipts
                reader.check_integrity()
        assert receipts == done - failed
