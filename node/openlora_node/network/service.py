"""The network as the daemon and the gateway see it: asyncio in front, libp2p in its own thread behind."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import ErrorReply, StreamProtocol
from .advertising import Advertising, AdvertOptions, open_advertising
from .adverts import Advert, OwnState
from .announcing import Announcer
from .bridge import Bridge, BridgeState
from .candidates import Seen
from .directory import Directory, DirectoryOptions, open_directory
from .filters import AdapterFilter
from .host import Host, HostOptions
from .identity import Peer, RegistryView
from .opening import open_host
from .reach import Reachability, ReachOptions, ReachState, open_reach
from .reach_links import Link, ban, links
from .scores import Fault
from .session import Session
from .stream import FramedStream, M

MAX_WAITING_SESSIONS = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Life:
    """What runs in the network's thread, from one start of the host to its end."""

    host: Host
    advertising: Advertising
    directory: Directory
    announcer: Announcer
    reach: Reachability | None = None

    def say(self, state: OwnState) -> None:
        """Advertise what the daemon says of the node, with what is known here of how to reach it."""
        self.advertising.update(self.reach.dress(state) if self.reach is not None else state)


class Network:
    """One libp2p host, restarted as needed. `inbound` holds sessions that peers opened, until the daemon takes them."""

    def __init__(
        self,
        secret: bytes,
        options: HostOptions,
        registry: RegistryView,
        *,
        adverts: AdvertOptions,
        directory: DirectoryOptions,
        serves: Sequence[StreamProtocol[Any]] = (),
        reach: ReachOptions | None = None,
        max_waiting: int = MAX_WAITING_SESSIONS,
    ) -> None:
        """`secret`: the node key's 32 bytes; `adverts`: who signs ours; `serves`: whose sessions go to `inbound`.

        With `reach`, reach and addresses of adverts are found out here and what `advertise` says of them is unused.
        """
        self._secret = secret
        self._options = options
        self._registry = registry
        self._adverts = adverts
        self._directory = directory
        self._serves = serves
        self._reach = reach
        self._state = OwnState()
        self._followed: set[bytes] = set()
        self._max_waiting = max_waiting
        self._handed = 0  # written by the network's thread only, as `_taken` by the daemon's
        self._taken = 0
        self._sessions: weakref.WeakSet[Session[Any]] = weakref.WeakSet()
        self._bridge = Bridge(self._body)
        self._bridge.on_state(self._changed)
        self.inbound: asyncio.Queue[Session[Any]] = asyncio.Queue()

    def __repr__(self) -> str:
        return f"Network({self._bridge!r})"

    @property
    def state(self) -> BridgeState:
        """Whether the host is up."""
        return self._bridge.state

    @property
    def restarts(self) -> int:
        """How often the host crashed and came back."""
        return self._bridge.restarts

    async def start(self) -> None:
        """Start the host. Raises CONFIG_INVALID when it cannot listen, INTERNAL for a libp2p that does not fit."""
        self._loop = asyncio.get_running_loop()
        await self._bridge.start()

    async def stop(self) -> None:
        """Stop within a second. Sessions end with NODE_LOST."""
        await self._bridge.stop()

    async def peer_id(self) -> str:
        """This host's peer id."""
        return await self._bridge.call(_identity)

    async def addresses(self) -> tuple[str, ...]:
        """Where this host listens, each with its peer id: what another host can dial."""
        return await self._bridge.call(_addresses)

    async def peers(self) -> tuple[Peer, ...]:
        """Connected peers."""
        return await self._bridge.call(_peers)

    async def links(self) -> tuple[Link, ...]:
        """Connected peers with their connections."""

        async def look(life: Life) -> tuple[Link, ...]:
            return links(life.host)

        return await self._bridge.call(look)

    async def ban(self, peer: str, seconds: float) -> None:
        """Keep a peer out until the host restarts, at most so long; 0 lets it in again."""
        self._bridge.post(lambda life: ban(life.host, peer, seconds))

    async def connect(self, peer: str, addresses: Sequence[str] = ()) -> Peer:
        """A connection to a peer. Raises NODE_LOST when no address answers as this peer."""
        return await self._bridge.call(lambda life: life.host.connect(peer, addresses))

    async def disconnect(self, peer: str) -> None:
        """Close all connections to a peer."""
        self._bridge.post(lambda life: life.host.drop(peer))

    async def open(self, peer: str, protocol: StreamProtocol[M], *, node: bytes | None = None) -> Session[M]:
        """A session with a connected peer. With `node`, the peer must be that node by the registry: else WRONG_NODE."""
        return await self._bridge.call(lambda life: self._open(life.host, peer, protocol, node), discard=_abort)

    def advertise(self, state: OwnState) -> None:
        """What this node says of itself from now on, restarts included."""
        self._state = state
        self._bridge.post(lambda life: life.say(state))

    async def follow(self, base: bytes) -> None:
        """Hear the adverts of a base model's nodes from now on, restarts included."""
        self._followed.add(base)

        async def follow(life: Life) -> None:
            await life.advertising.follow(base)
            life.announcer.followed.add(base)

        await self._bridge.call(follow)

    async def nodes(self, base: bytes) -> tuple[Advert, ...]:
        """The newest adverts of nodes that serve a base model now."""

        async def live(life: Life) -> tuple[Advert, ...]:
            return life.advertising.table.live(base, time.time())

        return await self._bridge.call(live)

    async def seen(self, base: bytes) -> tuple[Seen, ...]:
        """Nodes that serve a base model now, with the round trip to those that are connected."""

        async def seen(life: Life) -> tuple[Seen, ...]:
            host = life.host
            connected = {peer.id for peer in host.peers()}
            adverts = life.advertising.table.live(base, time.time())
            return tuple(
                Seen(each, host.connections.rtt(each.peer) if each.peer in connected else None) for each in adverts
            )

        return await self._bridge.call(seen)

    async def filter_of(self, node: bytes) -> AdapterFilter | None:
        """The adapters of a connected node, compactly; None when it has none. Raises NODE_LOST, NOT_FOUND."""
        return await self._bridge.call(lambda life: life.advertising.filter_of(node))

    async def adapters_of(self, peer: str) -> tuple[bytes, ...]:
        """The exact list of a connected node's adapters, ascending. Raises NODE_LOST, MALFORMED."""
        return await self._bridge.call(lambda life: life.advertising.adapters_of(peer))

    async def connect_node(self, node: bytes) -> Peer:
        """A connection to a node, by its advert or its record in the directory. Raises NOT_FOUND, NODE_LOST."""

        async def connect(life: Life) -> Peer:
            known = life.advertising.table.get(node) or await life.directory.record(node)
            if known is None:
                raise OpenLoraError(ErrorCode.NOT_FOUND, "neither peers nor the directory know this node")
            return await life.host.connect(known.peer, known.value.addresses)

        return await self._bridge.call(connect)

    async def find(self, base: bytes) -> int:
        """Look in the directory for nodes of a base model and connect to them; how many are connected then."""
        return await self._bridge.call(lambda life: life.directory.find(base))

    async def reach(self, *, decided: bool = False) -> ReachState | None:
        """How others reach this host; None when that is not looked after. `decided`: wait for a first answer."""

        async def state(life: Life) -> ReachState | None:
            if decided and life.reach is not None:
                await life.reach.decided()
            return life.reach.state() if life.reach is not None else None

        return await self._bridge.call(state)

    async def is_degraded(self) -> bool:
        """Whether no peer is connected yet: the network keeps looking by itself."""

        async def degraded(life: Life) -> bool:
            return life.directory.degraded

        return await self._bridge.call(degraded)

    async def _open(self, host: Host, peer: str, protocol: StreamProtocol[M], node: bytes | None) -> Session[M]:
        stream = await host.open(peer, protocol)
        if node is not None and stream.peer.node != node:
            await stream.reset()
            raise OpenLoraError(
                ErrorCode.WRONG_NODE, "the registry knows this peer's key as another node, or not at all"
            )
        session = self._session(host, stream)

        async def run() -> None:
            try:
                await session.run()
            except ProtocolError:
                host.charge(peer, Fault.MALFORMED)

        host.spawn(run)
        return session

    def _session(self, host: Host, stream: FramedStream[M]) -> Session[M]:
        peer = stream.peer.id
        session = Session(
            stream, self._loop, charge=lambda fault: host.charge(peer, fault), remote_ip=host.connections.ip_of(peer)
        )
        self._sessions.add(session)
        return session

    @asynccontextmanager
    async def _body(self) -> AsyncIterator[Life]:
        """In the network's thread: what a life of the host consists of."""
        async with (
            open_host(self._secret, self._options, self._registry) as host,
            open_advertising(host, self._adverts, self._registry) as advertising,
            open_directory(host, self._directory, self._registry) as directory,
        ):
            announcer = Announcer(advertising, directory)
            for protocol in self._serves:
                host.serve(protocol, partial(self._serve, host))
            for base in list(self._followed):
                await advertising.follow(base)
                announcer.followed.add(base)
            host.spawn(announcer.run)
            if self._reach is None:
                advertising.update(self._state)
                yield Life(host, advertising, directory, announcer)
                return
            async with open_reach(host, self._reach, advertising, directory) as reach:
                life = Life(host, advertising, directory, announcer, reach)
                reach.on_change(lambda: life.say(self._state))
                life.say(self._state)
                yield life

    async def _serve(self, host: Host, stream: FramedStream[Any]) -> None:
        """In the network's thread: hand an inbound stream to the daemon, or refuse it when too many wait."""
        if self._handed - self._taken >= self._max_waiting:
            busy = OpenLoraError(ErrorCode.BUSY, retry_after_ms=1000)
            with trio.move_on_after(1):
                await stream.send(ErrorReply.of(busy))
            return
        self._handed += 1
        session = self._session(host, stream)
        self._loop.call_soon_threadsafe(self.inbound.put_nowait, session)
        await session.run()

    async def accept(self) -> Session[Any]:
        """The next session that a peer opened."""
        session = await self.inbound.get()
        self._taken += 1
        return session

    def _changed(self, state: BridgeState) -> None:
        if state in (BridgeState.RESTARTING, BridgeState.STOPPED):
            lost = OpenLoraError(ErrorCode.NODE_LOST, "the network stopped")
            for session in list(self._sessions):
                try:
                    self._loop.call_soon_threadsafe(session.end, lost)
                except RuntimeError:
                    return


async def _identity(life: Life) -> str:
    return life.host.id


async def _addresses(life: Life) -> tuple[str, ...]:
    return tuple(f"{address}/p2p/{life.host.id}" for address in life.host.addresses())


async def _peers(life: Life) -> tuple[Peer, ...]:
    return life.host.peers()


def _abort(session: Session[Any]) -> None:
    session.abort()
