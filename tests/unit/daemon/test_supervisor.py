"""The supervisor: what fails starts again or ends the daemon, for one reason, and everything it began it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from openlora_node.daemon.supervisor import FATAL, BackOff, Reason, Supervisor
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level

QUICK = BackOff(first=0.0, longest=0.0)


async def forever() -> None:
    await asyncio.Event().wait()


def failing(error: Exception) -> Callable[[], asyncio.Future[None]]:
    def work() -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    return work


async def test_a_task_that_fails_ends_the_daemon_with_its_error() -> None:
    supervisor = Supervisor()
    error = OpenLoraError(ErrorCode.CHAIN_FAILED, "no chain")
    supervisor.start("chain", failing(error))
    reason = await asyncio.wait_for(supervisor.wait(), 5)
    assert (reason.text, reason.error) == ("chain: no chain", error)
    assert supervisor.health("chain").level is Level.DOWN
    await supervisor.stop()


async def test_a_task_that_just_ends_is_a_failure_too() -> None:
    supervisor = Supervisor()
    supervisor.start("chain", lambda: asyncio.sleep(0))
    reason = await asyncio.wait_for(supervisor.wait(), 5)
    assert reason.text == "chain: it ended by itself"
    assert reason.error is not None
    assert reason.error.code is ErrorCode.INTERNAL


async def test_the_text_of_a_strange_exception_stays_inside() -> None:
    supervisor = Supervisor()
    supervisor.start("serving", failing(ValueError("hunter22")))
    reason = await asyncio.wait_for(supervisor.wait(), 5)
    assert "ValueError" in reason.text
    assert "hunter22" not in reason.text
    assert reason.error is not None
    assert "hunter22" not in reason.error.message


async def test_a_task_with_a_back_off_starts_again() -> None:
    supervisor, runs, third = Supervisor(), [], asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 3:
            third.set()
            await forever()
        raise ValueError("again")

    supervisor.start("settlement", work, restart=QUICK)
    await asyncio.wait_for(third.wait(), 5)
    assert supervisor.restarts("settlement") == 2
    assert supervisor.health("settlement").level is Level.UP
    assert supervisor.reason is None
    await supervisor.stop()
    assert supervisor.names == ()


async def test_while_it_waits_its_health_says_why() -> None:
    supervisor = Supervisor(clock=lambda: 77.0)
    supervisor.start("chain", failing(OpenLoraError(ErrorCode.CHAIN_FAILED, "no chain")), restart=BackOff(first=3600.0))
    while supervisor.health("chain").level is Level.UP:
        await asyncio.sleep(0)
    found = supervisor.health("chain")
    assert (found.level, found.since) == (Level.DOWN, 77)
    assert found.reason == "no chain; it starts again in 3600 s"
    await supervisor.stop()


@pytest.mark.parametrize("code", sorted(FATAL))
async def test_nothing_starts_again_when_promises_cannot_be_written(code: ErrorCode) -> None:
    supervisor = Supervisor()
    supervisor.start("serving", failing(OpenLoraError(code)), restart=QUICK)
    reason = await asyncio.wait_for(supervisor.wait(), 5)
    assert reason.error is not None
    assert reason.error.code is code


async def test_the_first_reason_counts() -> None:
    supervisor = Supervisor()
    first = Reason("SIGTERM")
    supervisor.shut_down(first)
    supervisor.shut_down(Reason("the disk is full", OpenLoraError(ErrorCode.STORAGE_FULL)))
    assert await supervisor.wait() is first
    assert supervisor.reason is first


async def test_tasks_end_in_the_reverse_order_of_their_start() -> None:
    supervisor, ended = Supervisor(), []

    def named(name: str) -> Callable[[], asyncio.Future[None]]:
        async def work() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        return work  # type: ignore[return-value]

    for name in ("chain", "network", "serving"):
        supervisor.start(name, named(name))
    assert supervisor.names == ("chain", "network", "serving")
    await asyncio.sleep(0)
    await supervisor.stop()
    assert ended == ["serving", "network", "chain"]


async def test_an_unknown_task_is_not_started() -> None:
    supervisor = Supervisor()
    assert supervisor.health("x").level is Level.DOWN
    await supervisor.end("x")


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_steady_run() -> None:
    back_off = BackOff(first=1, longest=10, steady=60)
    pauses = [back_off.after(0, 0)]
    for _ in range(5):
        pauses.append(back_off.after(pauses[-1], 1))
    assert pauses == [1, 2, 4, 8, 10, 10]
    assert back_off.after(10, 60) == 1
