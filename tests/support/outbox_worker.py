"""A process that pays through an outbox and dies at a named point: `outbox_worker JOURNAL URL COUNT STEP NTH [FIRST]`.

STEP is a step of the journal (before a write, before and after a COMMIT) or of the chain ("before-send",
"after-send"); the process kills itself with signal 9 when it gets there for the NTH time. "never" ends normally.
Payments are numbered from FIRST (default 0).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from openlora_chain.rpc import Rpc
from openlora_node.journal.outbox import JournalOutbox
from support.anvil import Bench, payment
from support.journal import open_journal


class Mine:
    """The step at which to die."""

    def __init__(self, step: str, nth: int) -> None:
        self._step, self._left = step, nth

    def __call__(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MinedRpc(Rpc):
    """A node whose sends are steps too."""

    mine: Mine

    async def send_raw(self, raw: bytes) -> None:
        self.mine("before-send")
        await super().send_raw(raw)
        self.mine("after-send")


async def main(path: str, url: str, count: int, step: str, nth: int, first: int = 0) -> None:
    mine = Mine(step, nth)
    async with Rpc(url) as rpc, open_journal(Path(path), on_step=mine) as journal:
        chain = MinedRpc(url)
        chain.mine = mine
        bench = Bench(rpc, JournalOutbox(journal), chain)
        for number in range(count):
            await bench.outbox.submit(payment(first + number))
        await bench.settle()
        await chain.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:])))
