"""One node from start to stop: lock, key, control socket, then its rooms; a reason to stop, a drain, the way down."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

from openlora_chain.errors import ChainError

from ..api.listeners import Listener
from ..api.meters import Meters
from ..config.schema import Config
from ..datadir import DataDir
from ..network.bridge import BridgeState
from ..network.hardware import Hardware, probe
from ..network.service import Network
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.structs import Reach
from . import fleet
from .adverts import Situation, own_state
from .board import ESSENTIAL, Board, clock_health, disk_health, summary
from .identity import registration
from .keys import open_node_key
from .listening import listen
from .notify import Notifier
from .rooms import Opener, Rooms
from .supervisor import BackOff, Reason, Supervisor

REFRESH_S = 5.0
"""Between looks at what an advert or a health page shows and nobody tells of by itself."""
SLOW_S = 60.0
"""The same for what takes a process or a call to learn."""
CALL_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of what has to be asked: the network, the clock, the newest advert of our own."""

    peers: int | None = None
    reach: Reach = Reach.UNKNOWN
    announced_at: int = 0
    block_time: int | None = None
    skew_s: float | None = None


class Node:
    """One node. `run` is its life; `stop` ends it with a drain, and called again at once."""

    def __init__(self, config: Config, *, environment: Mapping[str, str] = os.environ) -> None:
        self.config = config
        self.board = Board()
        self.supervisor = Supervisor()
        self.started_at = int(time.time())
        self.listeners: dict[str, Listener] = {}
        self._environment = environment
        self._notifier = Notifier(environment)
        self._rooms: Rooms | None = None
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self.hardware = Hardware()
        self.seen = Seen()
        self.meters = Meters()
        self._reach = ServiceHealth("reach", Level.INITIALIZING, "not open yet")
        self._network = ServiceHealth("network", Level.INITIALIZING, "not open yet")

    @property
    def rooms(self) -> Rooms:
        """What is open. Raises ENGINE_UNAVAILABLE before the key is."""
        if self._rooms is None:
            raise OpenLoraError(ErrorCode.ENGINE_UNAVAILABLE, "the node is only starting: ask again in a moment")
        return self._rooms

    @property
    def stopping(self) -> str:
        """Why the node stops, empty while it does not."""
        return self.supervisor.reason.text if self.supervisor.reason else ""

    def summary(self) -> str:
        """Serving or why not, in one line."""
        return summary(self.board.services(), self.stopping)

    def stop(self, why: str) -> None:
        """Drain, then stop; the second time at once."""
        if self.supervisor.reason is not None:
            logger.info("%s again: stopping at once", why)
            self._hurry.set()
        self.supervisor.shut_down(Reason(why))

    async def run(self) -> Reason:
        """Until there is a reason to stop, and everything is closed. Raises what keeps it from starting."""
        async with AsyncExitStack() as stack:
            stack.enter_context(await asyncio.to_thread(DataDir.open, self.config.state_dir))
            self._watch_board()
            self._rooms = Rooms(self.config, await open_node_key(self.config, self._environment))
            await listen(self, stack)
            logger.info("openlora %s is up: %s", version("openlora-node"), self.config.node.network)
            self.supervisor.start("watchdog", lambda: self._notifier.watch(self.summary), restart=BackOff())
            stack.push_async_callback(self.supervisor.stop)
            async with AsyncExitStack() as rooms:
                reason = await self._live(rooms)
                await self._wind_down(reason)
            logger.info("stopped: %s", reason.text)
        return reason

    async def _live(self, stack: AsyncExitStack) -> Reason:
        """Open the rooms and wait for a reason to stop, whichever comes first."""
        self.supervisor.start("adverts", self._advertise, restart=BackOff())
        opening = asyncio.create_task(
            Opener(self.rooms, stack, self.supervisor, self.meters, self._changed.set).open(), name="opening"
        )
        waiting = asyncio.create_task(self.supervisor.wait(), name="waiting")
        self._notifier.ready(self.summary())
        await asyncio.wait({opening, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
        (outcome,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(outcome, OpenLoraError):
            self.supervisor.shut_down(Reason(outcome.message, outcome))
        elif isinstance(outcome, Exception):
            logger.error("the node cannot start", exc_info=outcome)
            fault = OpenLoraError(ErrorCode.INTERNAL, f"a fault of ours ({type(outcome).__name__}): see the log")
            self.supervisor.shut_down(Reason(fault.message, fault))
        return await waiting

    async def _wind_down(self, reason: Reason) -> None:
        """Tell everybody, take no more, let what runs end within the grace. The stack closes the rooms then."""
        self._notifier.stopping(reason.text)
        self._say()
        serving = self.rooms.serving
        if serving is None:
            return
        # A node that can write nothing down has nothing to gain from going on.
        grace = 0.0 if reason.error else self.config.engine.grace.total_seconds()
        drain = asyncio.create_task(serving.drain(grace), name="drain")
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drain.done():
            await serving.drain(0)
        await drain

    # What others see.

    def drain(self) -> None:
        """Take no more requests and say so; stay up."""
        if self.rooms.serving is None:
            raise OpenLoraError(ErrorCode.ENGINE_UNAVAILABLE, "nothing is served yet: there is nothing to drain")
        self.rooms.serving.pause()
        self._changed.set()

    async def _advertise(self) -> None:
        """Keep the advert and the cached healths true: at once when something changed, else every few seconds."""
        looked = -SLOW_S
        while True:
            unset = self.seen.block_time is None and self.rooms.chain is not None
            if unset or time.monotonic() - looked >= SLOW_S:
                looked = time.monotonic()
                self.hardware = await asyncio.to_thread(probe)
                await self._tell_time()
            await self._look()
            self._say()
            self._changed.clear()
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _say(self) -> None:
        rooms = self.rooms
        if rooms.network is not None and rooms.network.state is BridgeState.RUNNING:
            rooms.network.advertise(own_state(self._situation(rooms), self.config.pricing))

    def _situation(self, rooms: Rooms) -> Situation:
        load = rooms.serving.load() if rooms.serving else None
        up = fleet.serving(rooms.engines)
        missing = [s for s in self.board.services() if s.name in ESSENTIAL and not s.works]
        return Situation(
            serving=load is not None and not missing,
            draining=bool(self.stopping) or (load is not None and load.draining),
            bases=fleet.bases(up) or rooms.bases,
            adapters=rooms.store.ids("adapter") if rooms.store else frozenset(),
            infos=tuple(each.info for each in up if each.info is not None),
            queue=load.queue if load else 0,
            tokens_per_second=load.tokens_per_second if load else 0.0,
            hardware=self.hardware,
        )

    async def _look(self) -> None:
        """Ask what answers in its own time only."""
        network = self.rooms.network
        if network is None:
            return
        if network.state is not BridgeState.RUNNING:
            self._network = ServiceHealth("network", Level.DOWN, "the host restarts")
            return
        try:
            alone, reach = await network.is_degraded(), await network.reach()
            peers, announced = len(await network.peers()), await self._announced_at(network)
        except OpenLoraError as error:
            self._network = ServiceHealth("network", Level.DOWN, error.message)
            return
        self._network = ServiceHealth("network", Level.UP)
        if alone:
            self._network = ServiceHealth("network", Level.DEGRADED, "no peer yet: the network keeps looking")
        found = Reach.UNKNOWN if reach is None else reach.reach
        self.seen = replace(self.seen, peers=peers, reach=found, announced_at=announced)
        self._reach = _reach_health(found)

    async def _announced_at(self, network: Network) -> int:
        """When the newest live advert of this node was signed; what was known before while there is none."""
        adverts = [advert for base in self.rooms.bases for advert in await network.nodes(base)]
        own = [advert.value.issued_at for advert in adverts if advert.node == self.rooms.node]
        return max(own, default=self.seen.announced_at)

    async def _tell_time(self) -> None:
        """The newest block's time, to hold this machine's clock against."""
        chain = self.rooms.chain
        if chain is None:
            return
        try:
            async with asyncio.timeout(CALL_S):
                head = await chain.rpc.head()
            self.seen = replace(self.seen, block_time=head.timestamp, skew_s=time.time() - head.timestamp)
        except (ChainError, TimeoutError):
            logger.debug("the chain does not tell the time")

    def _watch_board(self) -> None:
        """The services in the order of a start."""
        board = self.board
        board.add("registration", self._registration)
        board.add("chain", self._chain)
        board.add("journal", lambda: _opened("journal", self.rooms.journal))
        board.add("engine", self._engine)
        for place, engine in enumerate(self.config.all_engines if self.config.engines else ()):
            board.add(f"engine-{engine.name}", partial(self._one_engine, place))
        board.add("serving", self._serving)
        board.add("network", lambda: self._network)
        board.add("reach", lambda: self._reach)
        board.add("settlement", self._settlement)
        board.add("disk", lambda: disk_health(self.config.state_dir))
        board.add("clock", lambda: clock_health(time.time(), self.seen.block_time))

    def _registration(self) -> ServiceHealth:
        rooms = self.rooms
        if rooms.node is None or rooms.chain is None:
            return ServiceHealth("registration", Level.INITIALIZING, rooms.waits_for)
        return registration(rooms.chain.view, rooms.node, rooms.wallet.address)

    def _chain(self) -> ServiceHealth:
        chain, synced = self.rooms.chain, self.rooms.synced
        if chain is None or synced is None:
            return _opened("chain", None)
        found = chain.view.health()
        if found.works and not synced.done():
            return replace(found, level=Level.INITIALIZING)
        return found

    def _engine(self) -> ServiceHealth:
        rooms = self.rooms
        if not rooms.engines or rooms.serving is None:
            return _opened("engine", None, rooms.waits_for if rooms.engines else "")
        return fleet.health(rooms.engines)

    def _one_engine(self, place: int) -> ServiceHealth:
        engines = self.rooms.engines
        return engines[place].health() if engines else _opened("engine", None, self.rooms.waits_for)

    def _serving(self) -> ServiceHealth:
        serving = self.rooms.serving
        if serving is None:
            return _opened("serving", None)
        if serving.load().draining:
            return ServiceHealth("serving", Level.DOWN, "draining: new requests are sent elsewhere")
        return ServiceHealth("serving", Level.UP)

    def _settlement(self) -> ServiceHealth:
        settlement = self.rooms.settlement
        return settlement.health() if settlement else _opened("settlement", None)


def _opened(name: str, room: object, waits_for: str = "") -> ServiceHealth:
    if room is None:
        return ServiceHealth(name, Level.INITIALIZING, waits_for or "not open yet")
    return ServiceHealth(name, Level.UP)


def _reach_health(reach: Reach) -> ServiceHealth:
    if reach is Reach.DIRECT:
        return ServiceHealth("reach", Level.UP)
    if reach is Reach.RELAYED:
        return ServiceHealth("reach", Level.DEGRADED, "others reach this node through a relay: `openlora net reach`")
    return ServiceHealth("reach", Level.INITIALIZING, "no peers have dialled back yet")
