"""The engine as the daemon keeps it: a process of ours or one that runs by itself, watched either way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.files import read_private

from ..config.engines import ONLY, NamedEngine
from ..config.schema import Config
from ..engineclient import Channel, EngineClient, EngineInfo
from ..engineclient.command import engine_command, engine_environment
from ..engineclient.process import EngineProcess, ProcessOptions
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import format_artifact_id
from .base import Base
from .lanes import Lane

WATCH_S = 2.0
STOP_S = 20.0
"""Beyond the engine's grace."""
MAX_KEY_BYTES = 1_024

logger = logging.getLogger(__name__)


class EngineKeeper:
    """One engine. `run` is a task; `on_change` is called in the loop whenever health or what it serves changed."""

    def __init__(
        self,
        config: Config,
        engine: NamedEngine,
        client: EngineClient,
        on_change: Callable[[], None],
        on_load: Callable[[float], object] = lambda _: None,
    ) -> None:
        """`on_load` takes the seconds of each adapter that the engine learnt."""
        self.engine = engine
        self.client = client
        self.base: Base | None = None
        """The base model that it is to serve; None until it is known."""
        self.lane = Lane(client, lambda: self.serves, on_load)
        self.info: EngineInfo | None = None
        """What serves now; None while nothing does."""
        self._config = config
        self._on_change = on_change
        self._process: EngineProcess | None = None
        self._health = ServiceHealth("engine", Level.INITIALIZING, "not started yet")
        self._silence = ""
        """Why it does not say what it serves although it is up."""
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        """What the operator calls it."""
        return self.engine.name

    @property
    def serves(self) -> bool:
        """Whether a request would run."""
        return self._health.works and self.info is not None

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
        if self._silence and self._health.level is Level.UP:
            return ServiceHealth("engine", Level.DOWN, self._silence)
        return self._health

    def spawn(self, model: Path, artifact: bytes) -> None:
        """Have `run` start a process for this base."""
        grace = self._config.engine.grace.total_seconds()
        self._process = EngineProcess(
            engine_command(self._config, self.engine, model, format_artifact_id(artifact)),
            self.client.report,
            ProcessOptions(grace_s=grace, label=self._label, environment=engine_environment(self.engine)),
            on_change=self._heard,
        )

    @property
    def _label(self) -> str:
        return "the engine" if self.name == ONLY else f"the engine {self.name}"

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
            logger.error("%s: %s", self._label, error.message)  # noqa: TRY400 - ours: it says all that there is to say
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
                    self._silence = ""
                    self._on_change()
                except OpenLoraError as error:
                    self._say_silent(error.message)
                    await asyncio.sleep(WATCH_S)
                    continue
            await self._changed.wait()

    def _say_silent(self, why: str) -> None:
        if why != self._silence:
            logger.warning("%s does not say what it serves: %s", self._label, why)
            self._silence = why
            self._on_change()

    def _heard(self, health: ServiceHealth) -> None:
        if (health.level, health.reason) == (self._health.level, self._health.reason):
            return
        if health.level is not Level.UP:
            self.info, self._silence = None, ""
            self.lane.forget()
        was, self._health = self._health.level, health
        self._changed.set()
        if was is not health.level:
            logger.info(
                "%s: %s%s",
                self._label.removeprefix("the "),
                health.level.value,
                f", {health.reason}" if health.reason else "",
            )
            self._on_change()


@asynccontextmanager
async def open_engine(
    config: Config,
    engine: NamedEngine,
    on_change: Callable[[], None],
    on_load: Callable[[float], object] = lambda _: None,
) -> AsyncIterator[EngineKeeper]:
    """One engine that the configuration names; nothing is started yet. Raises CONFIG_SECRET for an unsafe key file."""
    keys = engine.keys
    channel = Channel(url=keys.url, api_key=api_key(engine)) if keys.url else Channel(socket=engine.socket)
    async with EngineClient(channel, keys.backend) as client:
        yield EngineKeeper(config, engine, client, on_change, on_load)


def api_key(engine: NamedEngine) -> str | None:
    """What the server at `url` asks for: the first line of a private file. No log and no error holds it."""
    path = engine.keys.api_key_file
    if path is None:
        return None
    try:
        line = read_private(path, MAX_KEY_BYTES, ChainErrorCode.KEY_NOT_FOUND).partition(b"\n")[0].strip()
    except ChainError as error:
        raise OpenLoraError(ErrorCode.CONFIG_SECRET, f"{engine.where}.api_key_file: {error.message}") from None
    if not line or len(line) > MAX_KEY_BYTES or not all(0x21 <= byte < 0x7F for byte in line):
        raise OpenLoraError(
            ErrorCode.CONFIG_SECRET, f"{engine.where}.api_key_file: write the key alone on the first line"
        )
    return line.decode("ascii")
