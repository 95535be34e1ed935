"""The engine's process: started, watched, started again after a crash, stopped with grace. One task owns it: `run`."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from .backoff import Backoff, is_hopeless
from .client import EngineReport, EngineState

logger = logging.getLogger(__name__)

KEPT_LINES, MAX_LINE_CHARS = 40, 400
KILL_AFTER_S = 15.0
"""Beyond the engine's own grace: time to finish a step and close."""
WATCH_S = 2.0
POLL_S, LOOK_S = 0.25, 1.0
"""Between looks at an engine that says it is ready, and at one that says nothing yet."""
LOST_AFTER_S = 60.0
"""A process that answers nothing for so long is killed: its event loop hangs."""
READY_MARK = "serving on "
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \S+ (?P<level>[A-Z]+) [\w.]+: ")


@dataclass(frozen=True)
class ProcessOptions:
    """Times of one engine process in seconds, its name in the log, and what its environment has on top."""

    grace_s: float = 30.0
    start_s: float = 1800.0
    """A start that takes longer is taken for a hang; large models load for minutes."""
    watch_s: float = WATCH_S
    lost_after_s: float = LOST_AFTER_S
    kill_after_s: float = KILL_AFTER_S
    label: str = "the engine"
    environment: Mapping[str, str] = field(default_factory=dict)


class EngineProcess:
    """One engine process under supervision.

    `report` asks the engine how it is (`EngineClient.report`). `on_change` is called in the loop with each new health
    and must not block.
    """

    def __init__(
        self,
        command: Sequence[str],
        report: Callable[[], Awaitable[EngineReport]],
        options: ProcessOptions | None = None,
        *,
        on_change: Callable[[ServiceHealth], None] = lambda _health: None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._command = tuple(command)
        self._report = report
        self._options = options or ProcessOptions()
        self._on_change = on_change
        self._monotonic, self._clock = monotonic, clock
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._marked = asyncio.Event()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._health = ServiceHealth("engine", Level.INITIALIZING, "not started yet", int(clock()))
        self._served_since: float | None = None
        self._level = logging.INFO
        """Of the engine's newest line; what follows without one of its own, such as a traceback, belongs to it."""
        self._fault = ""
        """Why this life was ended by us."""
        self.starts = 0
        """How often the engine was started."""

    @property
    def health(self) -> ServiceHealth:
        """The engine as its supervisor sees it; while it starts the reason is its last line."""
        return self._health

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process is not None else None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of the engine's log; it holds no prompt and no output."""
        return tuple(self._lines)

    async def ready(self) -> None:
        """Return once the engine serves, or will not serve again."""
        await self._ready.wait()

    async def run(self) -> None:
        """Keep an engine running until `stop`; then it ends with grace. Cancelling kills it.

        Raises OpenLoraError CONFIG_INVALID or ENGINE_UNAVAILABLE where another start would end the same way, with the
        engine's own reason.
        """
        backoff = Backoff()
        try:
            while not self._stopping.is_set():
                began = self._monotonic()
                code, served_s = await self._life()
                if self._stopping.is_set():
                    break
                if is_hopeless(code):
                    raise self._given_up(code)
                backoff = backoff.after(served_s)
                seconds = self._monotonic() - began
                reason = f"the engine {self._fault or _ended(code)} after {seconds:.0f} s: {self._last_words()}"
                logger.error("%s: %s; it starts again in %.0f s", self._options.label, reason, backoff.wait_s)
                self._set(Level.DOWN, f"{reason}; it starts again in {backoff.wait_s:.0f} s")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff.wait_s)
            self._set(Level.DOWN, "stopped")
        finally:
            self._ready.set()
            await self._kill()

    async def stop(self) -> None:
        """Have the engine finish what runs, within its grace, and end; `run` then returns. May be called repeatedly."""
        if not self._stopping.is_set():  # a second signal would end the grace
            self._stopping.set()
            self._signal(signal.SIGTERM)

    # One life.

    async def _life(self) -> tuple[int, float]:
        """From a start to the end of the process. Gives its exit code and the seconds it served."""
        self._lines.clear()
        self._fault = ""
        self._marked.clear()
        self._ready.clear()
        self._set(Level.INITIALIZING, "the engine starts")
        process = await self._start()
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read_log(process), name="engine log"),
            asyncio.create_task(self._watch(), name="engine watch"),
            asyncio.create_task(self._end_in_time(process), name="engine end"),
        ]
        tasks.append(ended := asyncio.create_task(process.wait(), name="engine exit"))
        try:
            done, _ = await asyncio.wait({ended, *tasks[1:3]}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()  # a fault of ours: nobody would look after the engine any more
            code = await ended
            await asyncio.wait({tasks[0]}, timeout=1.0)  # its last lines; a grandchild may hold the pipe open
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._kill()
        self._ready.clear()
        return code, 0.0 if self._served_since is None else self._monotonic() - self._served_since

    async def _start(self) -> asyncio.subprocess.Process:
        """Start it tied to this process, in a session of its own: a terminal's Ctrl-C is for the daemon to judge."""
        tether = Path(__file__).with_name("tether.py")
        self._served_since = None
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(tether), str(os.getpid()), *self._command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", **self._options.environment},
        )
        self.starts += 1
        logger.info("%s starts as process %d", self._options.label, self._process.pid)
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        return self._process

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        """Take every line as it comes: an engine whose pipe is full would stop."""
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-MAX_LINE_CHARS:]
            for line in lines:
                self._say(line.decode("utf-8", "replace").strip()[:MAX_LINE_CHARS])
        self._say(rest.decode("utf-8", "replace").strip())

    def _say(self, line: str) -> None:
        if not line:
            return
        if stamp := _STAMP.match(line):
            self._level = logging.getLevelNamesMapping().get(stamp["level"], logging.INFO)
            line = line[stamp.end() :]
        self._lines.append(line)
        logger.log(self._level, "%s: %s", self._options.label.removeprefix("the "), line)
        if READY_MARK in line:
            self._marked.set()
        elif self._health.level is Level.INITIALIZING:
            self._set(Level.INITIALIZING, f"the engine starts: {line}")

    async def _watch(self) -> None:
        """Wait for the engine to serve, then look after it: one that failed or hangs is killed, to be started again."""
        options = self._options
        deadline = self._monotonic() + options.start_s
        answered = self._monotonic()
        while True:
            if self._served_since is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._marked.wait(), LOOK_S)
            report = await self._report()
            now = self._monotonic()
            if report.state is not EngineState.UNREACHABLE or self._served_since is None:
                answered = now  # until it serves only `start_s` bounds its silence
            if report.state is EngineState.OK:
                self._serves(now)
            elif report.state is EngineState.FAILED:
                self._end(f"has failed: {report.message}")
            elif self._served_since is None and now >= deadline:
                self._end(f"was not ready within {options.start_s:.0f} s")
            elif now - answered >= options.lost_after_s:
                self._end(f"did not answer for {options.lost_after_s:.0f} s")
            await asyncio.sleep(POLL_S if self._served_since is None else options.watch_s)

    def _serves(self, now: float) -> None:
        if self._served_since is None:
            self._served_since = now
            logger.info("%s serves", self._options.label)
        self._set(Level.UP, "")
        self._ready.set()

    def _end(self, problem: str) -> None:
        """Kill what does no good; `_life` sees it end."""
        logger.error("%s %s: it is killed", self._options.label, problem)
        self._fault = problem
        self._signal(signal.SIGKILL)

    async def _end_in_time(self, process: asyncio.subprocess.Process) -> None:
        """Once `stop` was called, the engine has its grace and a little more."""
        await self._stopping.wait()
        self._set(Level.DOWN, "the engine is stopping")
        await asyncio.sleep(self._options.grace_s + self._options.kill_after_s)
        if process.returncode is None:
            self._end("did not stop in time")
            await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """To the engine's whole process group: what it started goes with it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    async def _kill(self) -> None:
        process = self._process
        if process is not None:
            self._signal(signal.SIGKILL)
            await process.wait()
            self._process = None

    # What to say of it.

    def _set(self, level: Level, reason: str) -> None:
        if self._stopping.is_set() and level is Level.UP:
            return
        if (level, reason) != (self._health.level, self._health.reason):
            since = self._health.since if level is self._health.level else int(self._clock())
            self._health = ServiceHealth("engine", level, reason, since)
            self._on_change(self._health)

    def _last_words(self) -> str:
        return self._lines[-1] if self._lines else "it said nothing"

    def _given_up(self, code: int) -> OpenLoraError:
        """The engine's own sentence; exit codes 2 and 3 are configuration, 7 a device that it does not fit."""
        reason = self._last_words().removeprefix("openlora engine: ")
        self._set(Level.DOWN, f"the engine cannot start: {reason}")
        error = ErrorCode.CONFIG_INVALID if code in (2, 3) else ErrorCode.ENGINE_UNAVAILABLE
        return OpenLoraError(error, f"the engine cannot start: {reason}")


def _ended(code: int) -> str:
    """How a process ended, for people."""
    if code == -signal.SIGKILL:
        return "was killed (signal 9: the kernel may have run out of memory)"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
