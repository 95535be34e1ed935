"""The libp2p host: identity, connections, inbound streams, watchdog. Lives in the network's thread, knows no asyncio.

TCP, Noise and Yamux only, always named: libp2p's own default would also offer plaintext. Every inbound stream of every
protocol, libp2p's own included, passes one guard, so that nothing a peer does ends the host.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream, IRawConnection
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import StreamProtocol
from . import patches
from .buckets import Allowance, Buckets
from .connections import Connections, is_frozen
from .identity import Peer, RegistryView, identify, parse_peer_id
from .reach_addresses import ip_of, is_circuit, is_loopback, plain, port_of, texts_of
from .relay_transport import CircuitTransport
from .scores import Fault, Scores
from .stream import BROKEN, FramedStream, M

MAX_ADDRESSES_DIALLED = 8
MAX_STREAMS_PER_PEER = 64
MAX_KNOWN_PEERS = 4096
STREAM_RATE = Allowance(rate=20.0, burst=200.0)

logger = logging.getLogger(__name__)

StreamHandler = Callable[[INetStream, Peer], Awaitable[None]]
ConnectedHook = Callable[[Peer], Awaitable[None]]


@dataclass(frozen=True)
class HostOptions:
    """What the host is told. Times in seconds."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: tuple[str, ...] = ()
    """Addresses told to others; empty: where the host listens and what peers observe."""
    max_connections: int = 256
    max_per_place: int = 0
    """Strangers' connections from one IPv4 address or IPv6 /64; 0 for an eighth of all, at least eight."""
    deny: tuple[str, ...] = ()
    """IP addresses and networks (CIDR) that may not connect and are not dialled."""
    stream_rate: Allowance = STREAM_RATE
    """Streams that one peer may open."""
    ping_interval: float = 10.0
    frozen_after: float = 20.0
    """A ping unanswered for so long: the peer is frozen and its connection goes."""
    dial_timeout: float = 5.0
    stream_timeout: float = 10.0
    handshake_timeout: float = 5.0


class Host:
    """A host that listens. Made by `opening.open_host`; what it is connected to is `connections`."""

    def __init__(
        self, inner: BasicHost, options: HostOptions, registry: RegistryView, circuits: CircuitTransport
    ) -> None:
        self.inner = inner
        self.id = inner.get_id().to_base58()
        self.scores = Scores()
        self.connections = Connections(inner)
        self._swarm = cast(Swarm, inner.get_network())
        self._options = options
        self._registry = registry
        self._stream_buckets: Buckets[str] = Buckets(options.stream_rate)
        self._open_streams: Counter[str] = Counter()
        self._dialling: dict[ID, trio.Lock] = {}
        self._greeted: set[int] = set()
        self._nursery: trio.Nursery | None = None
        self._on_connected: list[ConnectedHook] = []
        self.circuits = circuits
        self.on_circuit: ConnectedHook | None = None
        """Called when `connect` went through a relay: time to find a direct way."""
        self.published: tuple[str, ...] | None = None
        """Addresses that identify and the directory tell, without peer id; None: where the host listens."""
        inner.get_network().set_stream_handler(self._guard)

    def __repr__(self) -> str:
        return f"Host({self.id}, {len(self.peers())} peers)"

    def addresses(self) -> tuple[str, ...]:
        """Where this host listens, without the peer id."""
        return tuple(str(address) for address in self.inner.get_transport_addrs())

    def ports(self) -> frozenset[int]:
        """Ports that this host listens on."""
        return frozenset(port_of(address) for address in self.addresses())

    def source(self, address: str) -> tuple[str, int] | None:
        """The listener's port, and the IP to bind a dial from it to; None where nothing listens in that family."""
        family, anywhere = ("/ip6/", "::") if address.startswith("/ip6/") else ("/ip4/", "0.0.0.0")  # noqa: S104
        own = next((a for a in self.addresses() if a.startswith(family)), None)
        if own is None:
            return None
        ip = ip_of(own) or anywhere
        return (anywhere if is_loopback(ip) and not is_loopback(ip_of(address)) else ip, port_of(own))

    def told(self) -> list[Multiaddr]:
        """What identify and the directory tell of this host's addresses, with its peer id."""
        told = self.published
        if told is None:
            told = self._options.announce or self.addresses()
        return [Multiaddr(f"{address}/p2p/{self.id}") for address in told]

    def peers(self) -> tuple[Peer, ...]:
        """Connected peers."""
        return tuple(self.peer(peer) for peer in self.connections.peers())

    def peer(self, peer: ID) -> Peer:
        """Who this authenticated peer is."""
        return identify(peer, self._registry)

    def is_connected(self, peer: str) -> bool:
        """Whether a connection to the peer is open."""
        return self.connections.is_open(peer)

    def on_connected(self, hook: ConnectedHook) -> None:
        """Call `hook` once for each new connection, in a task of its own. What it raises is logged."""
        self._on_connected.append(hook)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol. The guard closes the stream when `handler` returns and resets it when it raises."""

        async def serve(stream: INetStream) -> None:
            await handler(stream, self.peer(stream.muxed_conn.peer_id))
            await _quietly(stream.close)

        self.inner.set_stream_handler(TProtocol(protocol), serve)

    def serve(self, protocol: StreamProtocol[M], handler: Callable[[FramedStream[M]], Awaitable[None]]) -> None:
        """Serve one of the protocol's own streams, message by message."""

        async def framed(stream: INetStream, peer: Peer) -> None:
            await handler(FramedStream(stream, protocol, peer))

        self.handle(protocol.id, framed)

    async def connect(self, peer: str, addresses: Sequence[str] = ()) -> Peer:
        """A connection to `peer`, by the first of `addresses` that answers as it. Raises NODE_LOST, RATE_LIMITED."""
        peer_id = parse_peer_id(peer)
        if self.scores.is_denied(peer, trio.current_time()):
            raise OpenLoraError(ErrorCode.RATE_LIMITED, "this peer misbehaved and is kept out for a while")
        async with self._dialling.setdefault(peer_id, trio.Lock()):
            try:
                if not self.is_connected(peer):
                    await self._dial(peer_id, addresses or self._known_addresses(peer_id))
                    if self.on_circuit is not None and not self.connections.is_direct(peer):
                        await self.on_circuit(self.peer(peer_id))
            finally:
                if self._dialling[peer_id].statistics().tasks_waiting == 0:
                    self._dialling.pop(peer_id, None)
        return self.peer(peer_id)

    async def open(self, peer: str, protocol: StreamProtocol[M]) -> FramedStream[M]:
        """A new stream to a connected peer; who does not answer is dropped. Raises NODE_LOST, UNSUPPORTED."""
        peer_id = parse_peer_id(peer)
        if not self.is_connected(peer):
            raise OpenLoraError(ErrorCode.NODE_LOST, "no connection to this peer is open")
        try:
            with trio.fail_after(self._options.stream_timeout):
                stream = await self.inner.new_stream(peer_id, [TProtocol(protocol.id)])
        except trio.TooSlowError:
            self.drop(peer)
            raise OpenLoraError(ErrorCode.NODE_LOST, "the peer did not answer in time") from None
        except BROKEN as error:
            if "not supported" in str(error).lower():
                raise OpenLoraError(ErrorCode.UNSUPPORTED, f"the peer does not speak {protocol.id}") from None
            raise OpenLoraError(ErrorCode.NODE_LOST, "the peer opened no stream") from None
        return FramedStream(stream, protocol, self.peer(peer_id))

    def drop(self, peer: str) -> None:
        """Close every connection to `peer`, without waiting: it may be frozen."""
        for connection in self.connections.of(peer):
            patches.abort(connection.muxed_conn)

    def charge(self, peer: str, fault: Fault) -> None:
        """Note a peer's fault; at a hundred points it is dropped and kept out."""
        if self.scores.charge(peer, fault, trio.current_time()):
            logger.info("peer %s is kept out: %s was one too many", peer, fault.name)
            self.drop(peer)

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of a stream's owner. It ends with the host; a peer's bad bytes in it cost the peer's score."""
        assert self._nursery is not None, "the host is not running"
        self._nursery.start_soon(self._contained, task)

    async def may_dial(self, address: Multiaddr) -> bool:
        """Whether the deny list lets this address be dialled."""
        return await self._swarm.connection_gate.is_allowed(address)

    async def prove(self, raw: IRawConnection, peer: ID) -> None:
        """Have the other end of a fresh outbound connection prove that it is `peer`. Raises what libp2p raises."""
        await self._swarm.upgrader.upgrade_security(raw, True, peer)

    @staticmethod
    async def discard(stream: INetStream) -> None:
        """End a raw stream that is done with. Never raises, never waits long."""
        await _quietly(stream.close)

    async def _contained(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (OpenLoraError, *BROKEN) as error:
            logger.debug("a task ended: %s", error)
        except Exception:
            logger.exception("a task of the network failed")

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Watch connections and run tasks for as long as the block lasts; all connections are closed then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.watch)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await self.close()
                nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Close all connections at once. Half a second is enough: peers notice an end without farewell too."""
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                for listener in self._swarm.listeners.values():  # its task outlives the swarm
                    nursery.start_soon(_quietly, listener.close)
                for _, connection in self.connections.all():
                    muxer = cast(Yamux, connection.muxed_conn)
                    muxer.event_shutting_down.set()
                    nursery.start_soon(_quietly, muxer.secured_conn.close)

    async def watch(self) -> None:
        """Until cancelled: close connections to frozen and denied peers, greet new ones, forget strangers."""
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                alive: set[int] = set()
                for peer, connection in self.connections.all():
                    alive.add(id(connection))
                    frozen = is_frozen(connection, now, self._options.frozen_after)
                    if frozen or self.scores.is_denied(peer.to_base58(), now):
                        patches.abort(connection.muxed_conn)
                    elif id(connection) not in self._greeted and not connection.is_closed:
                        self._greeted.add(id(connection))
                        nursery.start_soon(self._greet, self.peer(peer))
                self._greeted &= alive
                self._forget_strangers()
                await trio.sleep(min(1.0, self._options.frozen_after / 4))

    async def greet_now(self, peer: Peer) -> None:
        """Run the hooks for a peer that this host just connected to, instead of at the watchdog's next look."""
        self._greeted |= {id(c) for c in self.connections.of(peer.id)}
        await self._greet(peer)

    async def _greet(self, peer: Peer) -> None:
        for hook in self._on_connected:
            try:
                await hook(peer)
            except (OpenLoraError, *BROKEN) as error:
                logger.debug("greeting %s: %s", peer.id, error)
            except Exception:
                logger.exception("a hook failed on a new connection")

    async def _dial(self, peer: ID, addresses: Sequence[str]) -> None:
        """libp2p's own dial tries one TCP address a peer, and none for a minute after a failure."""
        for text in sorted(addresses[:MAX_ADDRESSES_DIALLED], key=is_circuit):
            with trio.move_on_after(self._options.dial_timeout):
                try:
                    address = Multiaddr(plain(text) + (f"/p2p/{peer}" if is_circuit(text) else ""))
                    if not await self._swarm.connection_gate.is_allowed(address):
                        continue
                    await self._swarm.dial_addr(address, peer)
                except (*BROKEN, ValueError) as error:
                    logger.debug("dialling %s at %s: %s", peer, text, type(error).__name__)
                    continue
                self.inner.get_peerstore().add_addrs(peer, [address], 3600)
                return
        raise OpenLoraError(ErrorCode.NODE_LOST, "no address of the peer answered as the peer")

    def _known_addresses(self, peer: ID) -> tuple[str, ...]:
        store = self.inner.get_peerstore()
        return texts_of(store.addrs(peer)) if peer in store.peers_with_addrs() else ()

    def _forget_strangers(self) -> None:
        """libp2p remembers every peer that it ever saw."""
        store = self.inner.get_peerstore()
        known = store.peer_ids()
        if len(known) > MAX_KNOWN_PEERS:
            own = self.inner.get_id()
            for peer in [p for p in known if p not in self._swarm.connections and p != own][: MAX_KNOWN_PEERS // 4]:
                store.clear_peerdata(peer)

    async def _guard(self, stream: INetStream) -> None:
        """All inbound streams pass here: who may open one, how many, and what happens when serving it fails."""
        peer = stream.muxed_conn.peer_id.to_base58()
        now = trio.current_time()
        if self.scores.is_denied(peer, now):
            self.drop(peer)
            return
        if self._open_streams[peer] >= MAX_STREAMS_PER_PEER or not self._stream_buckets.take(peer, now):
            self.charge(peer, Fault.FLOOD)
            await _quietly(stream.reset)
            return
        self._open_streams[peer] += 1
        try:
            await self.inner._swarm_stream_handler(stream)
        except ProtocolError as error:
            self.charge(peer, Fault.OVERSIZED if error.code is ErrorCode.FRAME_TOO_LARGE else Fault.MALFORMED)
            await _quietly(stream.reset)
        except DecodeError:  # from gossip: libp2p lets it through
            self.charge(peer, Fault.MALFORMED)
            await _quietly(stream.reset)
        except (OpenLoraError, EOFError, *BROKEN) as error:
            logger.debug("stream of %s ended: %s", peer, error)
            await _quietly(stream.reset)
        except Exception:
            logger.exception("a stream handler failed; its stream was reset")
            await _quietly(stream.reset)
        finally:
            self._open_streams[peer] -= 1
            if not self._open_streams[peer]:
                del self._open_streams[peer]


async def _quietly(action: Callable[[], Awaitable[Any]]) -> None:
    """Close or reset something that may be broken already."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
        try:
            await action()
        except Exception as error:  # noqa: BLE001 - it is being thrown away
            logger.debug("closing: %s", type(error).__name__)
