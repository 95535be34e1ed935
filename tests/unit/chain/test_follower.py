"""The log follower over a chain that grows, forks, lags and hides logs: the view ends equal to the chain."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_chain.errors import ChainError, ChainErrorCode, RpcError
from openlora_chain.follower import LogBatch, LogFollower
from openlora_chain.rpc import Head
from openlora_chain.store import BlockRef, LogRecord
from openlora_node.journal.logs import JournalLogs
from support.simchain import MemoryOutbox

ADDRESS = b"\x0a" * 20


class LogChain:
    """Blocks of some logs each, and a node with faults."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, int]] = [(bytes(32), 0)]
        self.fork = 0
        self.lag = 0
        self.limit = 10_000
        self.hide = False
        self.down = False

    def grow(self, counts: Sequence[int]) -> None:
        for count in counts:
            seed = self.blocks[-1][0] + bytes((count, self.fork % 256, len(self.blocks) % 256))
            self.blocks.append((hashlib.sha256(seed).digest(), count))

    def reorg(self, depth: int, counts: Sequence[int]) -> None:
        self.fork += 1
        del self.blocks[max(len(self.blocks) - depth, 1) :]
        self.grow(counts)

    def true_logs(self) -> list[LogRecord]:
        return [self._log(number, index) for number, (_, n) in enumerate(self.blocks) for index in range(n)]

    def _log(self, number: int, index: int) -> LogRecord:
        block_hash = self.blocks[number][0]
        return LogRecord(BlockRef(number, block_hash), index, block_hash, ADDRESS, (block_hash,), bytes((index,)))

    async def head(self) -> Head:
        if self.down:
            raise RpcError(ChainErrorCode.RPC_UNREACHABLE, "down")
        head = await self.block(max(len(self.blocks) - 1 - self.lag, 0))
        assert head is not None
        return head

    async def block(self, number: int) -> Head | None:
        if number >= len(self.blocks):
            return None
        return Head(number, self.blocks[number][0], self.blocks[number - 1][0], number, 1)

    async def logs(self, first: int, last: int, addresses: Sequence[bytes]) -> list[LogRecord]:
        if last - first + 1 > self.limit:
            raise RpcError(ChainErrorCode.RPC_FAILED, "too many blocks")
        logs = [log for log in self.true_logs() if first <= log.block.number <= last]
        return logs[::2] if self.hide else logs


class View:
    """What a receiver builds from batches."""

    def __init__(self) -> None:
        self.logs: set[LogRecord] = set()
        self.crash_next = False

    async def deliver(self, batch: LogBatch) -> None:
        for log in batch.removed:
            self.logs.discard(log)
        self.logs.update(batch.added)
        if self.crash_next:
            self.crash_next = False
            raise ChainError(ChainErrorCode.RPC_FAILED, "the process dies here")


class MemoryLogs(JournalLogs):
    """The journal's SQL on a database in memory."""

    def __init__(self) -> None:
        self._memory = MemoryOutbox()

    async def _run(self, operation):  # type: ignore[no-untyped-def]
        return await self._memory._run(operation)


COUNTS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), COUNTS),
        st.tuples(st.just("reorg"), st.integers(1, 8), COUNTS),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("lag"), st.integers(0, 5)),
        st.tuples(st.just("hide"), st.booleans()),
        st.tuples(st.just("down"), st.booleans()),
        st.tuples(st.just("limit"), st.sampled_from([1, 2, 7, 10_000])),
        st.just(("crash",)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(0, 6), st.sampled_from([1, 4, 500]))
def test_the_view_ends_equal_to_the_chain(events: list[tuple[object, ...]], start: int, max_range: int) -> None:
    async def run() -> None:
        chain, view, store = LogChain(), View(), MemoryLogs()

        def follower() -> LogFollower:
            return LogFollower(
                "f", chain, store, [ADDRESS], view.deliver, start=start, max_range=max_range, overlap=500
            )

        reader = follower()
        for name, *arguments in events:
            match name:
                case "grow":
                    chain.grow(*arguments)  # type: ignore[arg-type]
                case "reorg":
                    chain.reorg(*arguments)  # type: ignore[arg-type]
                case "crash":
                    view.crash_next, reader = True, follower()
                case "step":
                    for _ in range(arguments[0]):  # type: ignore[call-overload]
                        try:
                            await reader.step()
                        except ChainError:
                            reader = follower()
                case _:
                    setattr(chain, str(name), arguments[0])
        chain.lag, chain.hide, chain.down, chain.limit, view.crash_next = 0, False, False, 10_000, False
        chain.grow([0] * 120)  # a fork wins by being longer than what it replaces
        for _ in range(400):
            if not await reader.step():
                break
        assert view.logs == {log for log in chain.true_logs() if log.block.number >= start}

    asyncio.run(run())


async def test_ranges_halve_when_refused_and_recover() -> None:
    chain, view = LogChain(), View()
    chain.grow([1] * 100)
    chain.limit = 10
    reader = LogFollower("f", chain, MemoryLogs(), [ADDRESS], view.deliver, start=0, max_range=64, overlap=0)
    refused = 0
    for _ in range(100):
        try:
            if not await reader.step():
                break
        except RpcError:
            refused += 1
    assert refused
    assert len(view.logs) == 100
