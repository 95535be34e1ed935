"""A scripted life of a journal, run as a process that kills itself at its n-th step; prints what it was told is done.

`python workload.py JOURNAL STEP`. Every start repeats the whole script: what is done already must stay done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import count
from pathlib import Path

from openlora_node.journal import AlreadyDone
from support.journal import Builder, Clock, admit, digest_of, key_of, open_journal, request, voucher

RECEIPTS = 3


def dying_at(step: int):
    """An `OnStep` that kills the process at its `step`-th call; 0 never does."""
    calls = count(1)

    def on_step(_name: str) -> None:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def acknowledge(what: str) -> None:
    print(what, flush=True)


async def main(path: Path, step: int) -> None:
    clock = Clock()
    async with open_journal(path, clock, on_step=dying_at(step)) as journal:
        await journal.interrupt_running()
        acknowledge("interrupted")
        for nonce in range(RECEIPTS):
            # 35 wei a response: the opening voucher covers those before.
            opening = voucher(10 * nonce, 15 * nonce) if nonce else None
            outcome = await admit(journal, request(nonce), opening=opening)
            acknowledge(f"admitted {nonce}")
            if not isinstance(outcome, AlreadyDone):
                await journal.commit_receipt(digest_of(request(nonce)), Builder())
            acknowledge(f"receipt {nonce}")
        await journal.advance_voucher(voucher(10 * RECEIPTS, 15 * RECEIPTS))
        acknowledge("voucher")
        await journal.record_redeemed(key_of(), 35 * RECEIPTS)
        acknowledge("redeemed")
        await admit(journal, request(99))
        acknowledge("admitted 99")
        await journal.interrupt(digest_of(request(99)))
        clock.now += 361
        await journal.prune()
        acknowledge("pruned")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
