"""A thread that runs trio beside asyncio, restarts what crashes in it, and carries calls across. Knows no libp2p.

asyncio calls in with `call`; cancelling the caller cancels the work and the other way round. What the thread runs is
one async context manager, the body: it yields a value that calls are made on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import trio

from ..protocol.errors import ErrorCode, OpenLoraError

T = TypeVar("T")
R = TypeVar("R")

STOP_GRACE_S = 0.8
"""Time that the body gets to end when told to stop; then it is cancelled outright."""
FIRST_RESTART_S = 0.1
LONGEST_RESTART_S = 30.0
STEADY_AFTER_S = 60.0

logger = logging.getLogger(__name__)


class BridgeState(Enum):
    """Where the thread is."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"


@dataclass(frozen=True)
class _Run(Generic[T]):
    """One life of the body."""

    token: trio.lowlevel.TrioToken
    nursery: trio.Nursery
    value: T
    stop: trio.Event


class _Call:
    """One call on its way: the asyncio future that waits and the trio scope that works."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.scope: trio.CancelScope | None = None
        self.cancelled = False

    @property
    def has_result(self) -> bool:
        """In the asyncio thread: whether the work ended well and its result is here."""
        return self.future.done() and not self.future.cancelled() and self.future.exception() is None

    def cancel(self) -> None:
        """In the trio thread: stop the work, or never begin it."""
        self.cancelled = True
        if self.scope is not None:
            self.scope.cancel()

    def settle(self, result: object, error: BaseException | None, undelivered: Callable[[], object]) -> None:
        """From any thread: hand the outcome to the caller, or to `undelivered` when it has left."""

        def deliver() -> None:
            if self.future.done():
                undelivered()
            elif error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

        try:
            self.loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the caller's loop is closed
            undelivered()


class Bridge(Generic[T]):
    """The thread and its supervisor. Made and used in asyncio."""

    def __init__(self, body: Callable[[], AbstractAsyncContextManager[T]], name: str = "p2p") -> None:
        self._body = body
        self._name = name
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._run: _Run[T] | None = None
        self._started: _Call | None = None
        self._watchers: list[Callable[[BridgeState], None]] = []
        self.state = BridgeState.STOPPED
        self.restarts = 0

    def __repr__(self) -> str:
        return f"Bridge({self._name}, {self.state.value}, {self.restarts} restarts)"

    async def start(self) -> None:
        """Start the thread; returns once the body is up. Raises what the body's first start raised."""
        assert self._thread is None, "a bridge starts once"
        self._started = started = _Call(asyncio.get_running_loop())
        self._set_state(BridgeState.STARTING)
        self._thread = threading.Thread(target=self._supervise, name=self._name, daemon=True)
        self._thread.start()
        try:
            await started.future
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the body and the thread, within a second. Calls that are under way fail. Safe to repeat."""
        if self._thread is None:
            return
        self._stopping.set()
        run = self._run
        if run is not None:
            self._in_trio(run, run.stop.set)
        await asyncio.shield(asyncio.to_thread(self._thread.join, STOP_GRACE_S + 0.2))
        self._set_state(BridgeState.STOPPED)
        if self._thread.is_alive():
            logger.error("the %s thread did not end in time", self._name)

    async def call(self, function: Callable[[T], Awaitable[R]], *, discard: Callable[[R], object] | None = None) -> R:
        """Run `await function(value)` in the thread. `discard` gets, in the thread, a result whose caller has left.

        Raises what `function` raises, and INTERNAL while the body is down or when it goes down meanwhile.
        """
        run = self._run
        if run is None:
            raise _down()
        call = _Call(asyncio.get_running_loop())
        with self._lock:
            self._calls.add(call)
        try:
            if not self._in_trio(run, lambda: run.nursery.start_soon(self._work, run, call, function, discard)):
                raise _down()
            return await call.future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self._in_trio(run, call.cancel)
            if discard is not None and call.has_result:  # it came in the very moment that the caller left
                self._in_trio(run, lambda: discard(call.future.result()))
            raise
        finally:
            with self._lock:
                self._calls.discard(call)

    def post(self, function: Callable[[T], object]) -> bool:
        """Run a short synchronous function in the thread, soon; False when the body is down."""
        run = self._run
        return run is not None and self._in_trio(run, lambda: function(run.value))

    def on_state(self, watcher: Callable[[BridgeState], None]) -> None:
        """Call `watcher`, in whichever thread, at each change of state."""
        self._watchers.append(watcher)

    @staticmethod
    def _in_trio(run: _Run[T], function: Callable[[], object]) -> bool:
        def guarded() -> None:
            try:
                function()
            except RuntimeError:  # the nursery closed between post and run: the call fails with all others
                logger.debug("posted to a body that ends")

        try:
            run.token.run_sync_soon(guarded)
        except trio.RunFinishedError:
            return False
        return True

    async def _work(
        self, run: _Run[T], call: _Call, function: Callable[[T], Awaitable[R]], discard: Callable[[R], object] | None
    ) -> None:
        if call.cancelled:
            return
        with trio.CancelScope() as scope:
            call.scope = scope
            try:
                result = await function(run.value)
            except trio.Cancelled:
                call.settle(None, _down(), lambda: None)
                raise
            except Exception as error:  # noqa: BLE001 - the caller's to judge
                call.settle(None, error, lambda: None)
            else:
                call.settle(result, None, lambda: discard and self._in_trio(run, lambda: discard(result)))

    def _supervise(self) -> None:
        """The thread: run the body, and again when it crashes."""
        delay = FIRST_RESTART_S
        while not self._stopping.is_set():
            began = time.monotonic()
            error: BaseException | None = None
            try:
                trio.run(self._live)
            except BaseException as crash:  # noqa: BLE001 - nothing that happens in here may take the daemon down
                error = crash
            self._run = None
            self._fail_calls()
            if self._started is not None:
                self._started.settle(None, _only(error) if error else _down(), lambda: None)
                return
            if self._stopping.is_set():
                break
            logger.error("the %s thread crashed and starts again in %.1f s", self._name, delay, exc_info=error)
            self._set_state(BridgeState.RESTARTING)
            self.restarts += 1
            self._stopping.wait(delay)
            delay = FIRST_RESTART_S if time.monotonic() - began > STEADY_AFTER_S else min(delay * 2, LONGEST_RESTART_S)
        self._fail_calls()

    async def _live(self) -> None:
        stop = trio.Event()
        with trio.CancelScope() as life:
            async with self._body() as value, trio.open_nursery() as nursery:
                self._run = _Run(trio.lowlevel.current_trio_token(), nursery, value, stop)
                self._set_state(BridgeState.RUNNING)
                started, self._started = self._started, None
                if started is not None:
                    started.settle(None, None, lambda: None)
                if self._stopping.is_set():
                    stop.set()
                await stop.wait()
                life.deadline = trio.current_time() + STOP_GRACE_S
                self._run = None
                nursery.cancel_scope.cancel()

    def _fail_calls(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, set()
        for call in calls:
            call.settle(None, _down(), lambda: None)

    def _set_state(self, state: BridgeState) -> None:
        self.state = state
        for watcher in self._watchers:
            watcher(state)


def _only(error: BaseException) -> BaseException:
    """What a nursery wrapped, when it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _down() -> OpenLoraError:
    return OpenLoraError(ErrorCode.INTERNAL, "the network is starting again: retry in a moment", retry_after_ms=1000)
