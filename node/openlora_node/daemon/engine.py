"""The engine as the daemon keeps it: a process of ours or one that runs by itself, watched either way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ..config.schema import Config
from ..engineclient import Channel, EngineClient, EngineInfo
from ..engineclient.command import engine_command
from ..engineclient.process import EngineProcess, ProcessOptions
from ..protocol.errors import OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import format_artifact_id

WATCH_S = 2.0
STOP_S = 20.0
"""Beyond the engine's grace."""

logger = logging.getLogger(__name__)


class EngineKeeper:
    """One engine. `run` is a task; `on_change` is called in the loop whenever health or what it serves changed."""

    def __init__(self, config: Config, client: EngineClient, on_change: Callable[[], None]) -> None:
        self.client = client
        self.info: EngineInfo | None = None
        """What serves now; None while nothing does."""
        self._config = config
        self._on_change = on_change
        self._process: EngineProcess | None = None
        self._health = ServiceHealth("engine", Level.INITIALIZING, "not started yet")
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process that runs now, if it is ours."""
        return self._process.pid if self._process else None

    @property
    def starts(self) -> int:
        """How often the process was started; 0 for one that runs by itself."""
        return self._process.starts if self._process else 0

    def health(self) -> ServiceHealth:
        """As of the newest look."""
        return self._health

    def spawn(self, model: Path, artifact: bytes) -> None:
        """Have `run` start a process for this base."""
        grace = self._config.engine.grace.total_seconds()
        self._process = EngineProcess(
            engine_command(self._config, model, format_artifact_id(artifact)),
            self.client.report,
            ProcessOptions(grace_s=grace),
            on_change=self._heard,
        )

    async def run(self) -> None:
        """Keep it running, or watch it, until cancelled; learn what it serves. One that cannot start stays down."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._learn(), name="engine info")
            if self._process is None:
                group.create_task(self._watch(), name="engine watch")
            else:
                group.create_task(self._keep(self._process), name="engine process")

    async def stop(self) -> None:
        """Let the engine finish within its grace; a process of ours has ended then. `run` is to be cancelled after."""
        if self._process is not None:
            await self._process.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.engine.grace.total_seconds() + STOP_S):
                    while self._health.reason != "stopped":
                        self._changed.clear()
                        await self._changed.wait()

    async def _keep(self, process: EngineProcess) -> None:
        try:
            await process.run()
        except OpenLoraError as error:
            # Another start would end the same way. The node goes on settling what it has served.
            logger.error("%s", error.message)  # noqa: TRY400 - ours: it says all that there is to say
            self._heard(ServiceHealth("engine", Level.DOWN, error.message))

    async def _watch(self) -> None:
        while True:
            self._heard(await self.client.health())
            await asyncio.sleep(WATCH_S)

    async def _learn(self) -> None:
        """Ask what serves, each time that it begins to."""
        while True:
            self._changed.clear()
            if self._health.level is Level.UP and self.info is None:
                try:
                    self.info = await self.client.info()
                    self._on_change()
                except OpenLoraError as error:
                    logger.debug("engine info: %s", error.message)
                    await asyncio.sleep(WATCH_S)
                    continue
            await self._changed.wait()

    def _heard(self, health: ServiceHealth) -> None:
        if (health.level, health.reason) == (self._health.level, self._health.reason):
            return
        if health.level is not Level.UP:
            self.info = None
        was, self._health = self._health.level, health
        self._changed.set()
        if was is not health.level:
            logger.info("engine: %s%s", health.level.value, f", {health.reason}" if health.reason else "")
            self._on_change()


@asynccontextmanager
async def open_engine(config: Config, on_change: Callable[[], None]) -> AsyncIterator[EngineKeeper]:
    """The engine that the configuration names; nothing is started yet."""
    engine = config.engine
    channel = Channel(url=engine.url) if engine.url else Channel(socket=config.engine_socket)
    async with EngineClient(channel, engine.backend) as client:
        yield EngineKeeper(config, client, on_change)
