"""The bridge with bodies of plain trio: cancellation both ways, crashes, restarts, stopping."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from openlora_node.network.bridge import Bridge, BridgeState
from openlora_node.protocol.errors import ErrorCode, OpenLoraError


class Body:
    """A body that notes its lives and can be crashed."""

    def __init__(self) -> None:
        self.lives = 0
        self.crash = trio.Event()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Body]:
        self.lives += 1
        self.crash = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail)
            yield self
            nursery.cancel_scope.cancel()

    async def _fail(self) -> None:
        await self.crash.wait()
        raise ValueError("a bug")


@asynccontextmanager
async def running(body: Body) -> AsyncIterator[Bridge[Body]]:
    bridge: Bridge[Body] = Bridge(body)
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.stop()


async def _forever(_body: Body) -> None:
    await trio.sleep_forever()


async def test_calls_return_and_raise_what_the_thread_does() -> None:
    async def name(_body: Body) -> str:
        return threading.current_thread().name

    async def fail(_body: Body) -> None:
        raise KeyError("x")

    async with running(Body()) as bridge:
        assert await bridge.call(name) == "p2p"
        with pytest.raises(KeyError):
            await bridge.call(fail)
        assert bridge.restarts == 0


async def test_a_cancelled_caller_cancels_the_work() -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work(_body: Body) -> None:
        loop.call_soon_threadsafe(began.set)
        try:
            await trio.sleep_forever()
        finally:
            loop.call_soon_threadsafe(ended.set)

    async with running(Body()) as bridge:
        task = asyncio.create_task(bridge.call(work))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 5)
        assert not bridge._calls


async def test_a_caller_cancelled_at_once_leaves_nothing_running() -> None:
    async with running(Body()) as bridge:
        for _ in range(50):
            task = asyncio.create_task(bridge.call(_forever))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def children(_body: Body) -> int:
            assert bridge._run is not None
            await trio.testing.wait_all_tasks_blocked()
            return len(bridge._run.nursery.child_tasks)

        assert await bridge.call(children) == 1


async def test_a_result_whose_caller_left_is_discarded() -> None:
    discarded = asyncio.Event()
    loop = asyncio.get_running_loop()
    working = threading.Event()

    async def work(_body: Body) -> str:
        with trio.CancelScope(shield=True):
            working.set()
            await trio.sleep(0.05)
        return "stream"

    async with running(Body()) as bridge:
        call = bridge.call(work, discard=lambda result: loop.call_soon_threadsafe(discarded.set))
        task = asyncio.create_task(call)
        await asyncio.to_thread(working.wait)
        task.cancel()
        await asyncio.wait_for(discarded.wait(), 5)


async def test_a_result_that_comes_as_its_caller_is_cancelled_is_discarded() -> None:
    """Delivered and cancelled in one turn of the loop: the future has the result, and the caller never sees it."""
    discarded = asyncio.Event()
    loop = asyncio.get_running_loop()

    def cancel_behind_the_delivery() -> None:
        time.sleep(0.05)  # until the delivery stands in the loop's queue
        loop.call_soon(task.cancel)

    async def work(_body: Body) -> str:
        loop.call_soon_threadsafe(cancel_behind_the_delivery)
        return "stream"

    async with running(Body()) as bridge:
        task = asyncio.create_task(bridge.call(work, discard=lambda result: loop.call_soon_threadsafe(discarded.set)))
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(discarded.wait(), 5)


async def test_a_crash_fails_the_calls_under_way_and_the_body_lives_again() -> None:
    body = Body()
    states: list[BridgeState] = []
    again = threading.Event()

    def watch(state: BridgeState) -> None:
        states.append(state)
        if states.count(BridgeState.RUNNING) == 2:
            again.set()

    async with running(body) as bridge:
        bridge.on_state(watch)
        states.append(bridge.state)
        task = asyncio.create_task(bridge.call(_forever))
        await asyncio.sleep(0)
        bridge.post(lambda body: body.crash.set())
        with pytest.raises(OpenLoraError) as error:
            await asyncio.wait_for(task, 5)
        assert error.value.code is ErrorCode.INTERNAL
        assert error.value.code.retryable
        assert await asyncio.to_thread(again.wait, 5)
        assert body.lives == 2
        assert bridge.restarts == 1
        assert states == [BridgeState.RUNNING, BridgeState.RESTARTING, BridgeState.RUNNING]

        async def alive(body: Body) -> int:
            return body.lives

        assert await bridge.call(alive) == 2


async def test_a_crash_of_trio_itself_is_survived_too() -> None:
    body = Body()
    again = threading.Event()

    async def bug() -> None:
        raise RuntimeError("in a system task")

    async with running(body) as bridge:
        bridge.on_state(lambda state: state is BridgeState.RUNNING and again.set())
        bridge.post(lambda _body: trio.lowlevel.spawn_system_task(bug))
        assert await asyncio.to_thread(again.wait, 5)
        assert body.lives == 2


async def test_what_the_first_start_raises_is_raised_and_the_thread_ends() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OpenLoraError(ErrorCode.CONFIG_INVALID, "port taken")
        yield

    bridge: Bridge[None] = Bridge(broken)
    with pytest.raises(OpenLoraError, match="port taken"):
        await bridge.start()
    assert bridge._thread is not None
    assert not bridge._thread.is_alive()


async def test_calls_on_a_stopped_bridge_are_refused() -> None:
    bridge: Bridge[Body] = Bridge(Body())
    await bridge.start()
    await bridge.stop()
    await bridge.stop()
    with pytest.raises(OpenLoraError):
        await bridge.call(_forever)
    assert not bridge.post(lambda body: None)


async def test_a_body_that_does_not_end_is_cancelled_within_a_second() -> None:
    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        await trio.sleep_forever()

    bridge: Bridge[None] = Bridge(stubborn)
    await bridge.start()
    began = time.monotonic()
    await bridge.stop()
    assert time.monotonic() - began < 1.1
    assert bridge._thread is not None
    assert not bridge._thread.is_alive()
