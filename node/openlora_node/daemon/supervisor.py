"""Named tasks with an owner: what fails is restarted with a growing pause or ends the daemon, for one reason.

Knows no service. The first reason to stop is the one that counts; what fails on the way down is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_AFTER_S = 60.0
"""A task that ran so long begins again with the first pause."""

FATAL = frozenset(
    {ErrorCode.STORAGE_FULL, ErrorCode.STORAGE_READ_ONLY, ErrorCode.STORAGE_FAILED, ErrorCode.JOURNAL_CORRUPT}
)
"""Nothing is promised any more when promises cannot be written down: no task outlives these."""

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the daemon stops: in words, and the error that it returns to the shell (None: asked to)."""

    text: str
    error: OpenLoraError | None = None


@dataclass(frozen=True, slots=True)
class BackOff:
    """Pauses between restarts, in seconds: doubled each time, from `first` to `longest`."""

    first: float = FIRST_PAUSE_S
    longest: float = LONGEST_PAUSE_S
    steady: float = STEADY_AFTER_S

    def after(self, pause: float, ran: float) -> float:
        """The pause after a run of `ran` seconds that followed a pause of `pause` (0: none yet)."""
        return self.first if pause == 0 or ran >= self.steady else min(pause * 2, self.longest)


@dataclass(slots=True)
class _Entry:
    name: str
    task: asyncio.Task[None] | None = None
    restarts: int = 0
    health: ServiceHealth = field(default_factory=lambda: ServiceHealth("", Level.UP))


class Supervisor:
    """Owns the daemon's tasks. `wait` returns when there is a reason to stop; `stop` ends them, last begun first."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._reason: Reason | None = None
        self._changed = asyncio.Event()

    @property
    def reason(self) -> Reason | None:
        """Why the daemon stops; None while it need not."""
        return self._reason

    @property
    def names(self) -> tuple[str, ...]:
        """Running tasks in the order of their start."""
        return tuple(entry.name for entry in self._entries.values() if entry.task and not entry.task.done())

    def restarts(self, name: str) -> int:
        """How often a task was begun again."""
        return self._entries[name].restarts if name in self._entries else 0

    def health(self, name: str) -> ServiceHealth:
        """UP while the task runs, DOWN while it waits for its next start or has ended."""
        entry = self._entries.get(name)
        return entry.health if entry else ServiceHealth(name, Level.DOWN, "not started")

    def start(self, name: str, work: Work, *, restart: BackOff | None = None) -> None:
        """Begin a task that runs until cancelled. Without `restart` its failure, or its end, ends the daemon."""
        assert name not in self.names, f"two tasks named {name}"
        entry = _Entry(name)
        self._entries[name] = entry
        self._judge(entry, Level.UP, "")
        entry.task = asyncio.create_task(self._keep(entry, work, restart), name=name)

    def shut_down(self, reason: Reason) -> None:
        """Ask for the end. Only the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._changed.set()
            log = logger.error if reason.error else logger.info
            log("stopping: %s", reason.text)
        elif reason.error is not None:
            logger.warning("while stopping: %s", reason.text)

    async def wait(self) -> Reason:
        """Until there is a reason to stop."""
        await self._changed.wait()
        assert self._reason is not None
        return self._reason

    async def end(self, name: str) -> None:
        """Cancel one task and wait for it. An unknown or ended one is no error."""
        entry = self._entries.get(name)
        if entry is None or entry.task is None:
            return
        entry.task.cancel()
        await asyncio.gather(entry.task, return_exceptions=True)

    async def stop(self) -> None:
        """End every task, the last begun first."""
        for name in reversed(list(self._entries)):
            await self.end(name)

    async def _keep(self, entry: _Entry, work: Work, restart: BackOff | None) -> None:
        pause = 0.0
        while True:
            began = time.monotonic()
            error = await _outcome(work)
            text = f"{entry.name}: {_told(error)}"
            if restart is None or (isinstance(error, OpenLoraError) and error.code in FATAL):
                self._judge(entry, Level.DOWN, _told(error))
                fatal = error if isinstance(error, OpenLoraError) else OpenLoraError(ErrorCode.INTERNAL, text)
                if error is not None and not isinstance(error, OpenLoraError):
                    logger.error("%s failed", entry.name, exc_info=error)
                self.shut_down(Reason(text, fatal))
                return
            pause = restart.after(pause, time.monotonic() - began)
            entry.restarts += 1
            self._judge(entry, Level.DOWN, f"{_told(error)}; it starts again in {pause:.0f} s")
            logger.warning("%s; it starts again in %.1f s", text, pause, exc_info=None if _is_ours(error) else error)
            await asyncio.sleep(pause)
            self._judge(entry, Level.UP, "")

    def _judge(self, entry: _Entry, level: Level, reason: str) -> None:
        entry.health = ServiceHealth(entry.name, level, reason, int(self._clock()))


async def _outcome(work: Work) -> Exception | None:
    """What a run ended with; None when it just returned. Cancellation passes through."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor decides what follows
        return _inner(error)
    return None


def _inner(error: Exception) -> Exception:
    """The first failure of a group of tasks: what followed followed from it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _is_ours(error: Exception | None) -> bool:
    return error is None or isinstance(error, OpenLoraError)


def _told(error: Exception | None) -> str:
    """What may be shown of it: our errors speak, of others only the class."""
    if error is None:
        return "it ended by itself"
    return error.message if isinstance(error, OpenLoraError) else f"a fault of ours ({type(error).__name__})"
