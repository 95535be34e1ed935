"""Turns a relayed connection into a direct one (DCUtR, `/libp2p/dcutr`): both sides dial at the same moment.

Who received the relayed connection starts it. Both sides dial from the port that they listen on, so that each one's NAT
lets the other's SYN in as an answer to its own; on the connection that comes of it the starter is the responder.

libp2p 0.8.1's own is not used: it polls every two seconds, knows no NAT mapping but the listener's port, and gives a
wrong guess up for good after three polls. Its two dialling functions are.
"""

from __future__ import annotations

import errno
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch as Message
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from .buckets import Allowance, Buckets
from .host import Host
from .identity import Peer, parse_peer_id
from .nat_wire import pack_addresses, receive_message, send_message, unpack_addresses
from .reach_addresses import Circuit, Scope, ip_of, is_circuit, parse_circuit, plain, port_of, scope_of, texts_of
from .relay_transport import is_relayed
from .stream import BROKEN

DCUTR_ID = "/libp2p/dcutr"
ATTEMPTS = 3
EXCHANGE_TIMEOUT_S = 10.0
PUNCH_S = 5.0
"""One attempt's dialling."""
REDIAL_S = 0.1
REFUSED_REDIAL_S = (0.01, 0.06)
"""After a reset. A NAT that answers strangers with one lets only SYNs through that cross on the way: try often, and not
in step with the other side."""
REVERSE_S = 2.0
PATIENCE_S = 3.0
"""What a caller who just connected through a relay waits for a direct way."""
RETIRE_AFTER_S = 30.0
MAX_DIALLED = 4
MAX_REDIALS = 40
"""Of one address in one attempt."""
PER_PEER = Allowance(rate=1 / 20, burst=2.0 * ATTEMPTS)
IN_ALL = Allowance(rate=0.5, burst=30.0)
"""Attempts that others may start: whoever does names addresses that this host then dials."""
MAX_REMEMBERED = 1024

logger = logging.getLogger(__name__)

ExternalAddresses = Callable[[], tuple[str, ...]]
"""Where a NAT may have put the port that this host listens on."""
Learn = Callable[[Circuit], Awaitable[None]]
"""Finds that out from the relay of a circuit."""


class Direct(INotifee):
    """Tells at once of each direct connection to whom."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """libp2p: a connection is up."""
        if not is_relayed(conn):
            self._tell(conn.muxed_conn.peer_id.to_base58())

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """libp2p: a connection is gone."""

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """libp2p: of no interest here."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """libp2p: of no interest here."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """libp2p: of no interest here."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """libp2p: of no interest here."""


class HolePuncher:
    """Both sides of DCUtR on a host. `outcomes` counts successes and failures."""

    def __init__(self, host: Host, external: ExternalAddresses, learn: Learn | None = None) -> None:
        self.succeeded = 0
        self.failed = 0
        self._host = host
        self._external = external
        self._learn = learn
        self._swarm = cast(Swarm, host.inner.get_network())
        self._running: dict[str, trio.Event] = {}
        self._hopeless: OrderedDict[str, None] = OrderedDict()
        self._waiting: dict[str, trio.Event] = {}
        self._peers: Buckets[str] = Buckets(PER_PEER)
        self._all: Buckets[None] = Buckets(IN_ALL)
        host.handle(DCUTR_ID, self.answer)
        host.on_circuit = self.wait
        self._swarm.register_notifee(Direct(self._release))

    async def start(self, peer: Peer) -> None:
        """The peer came through a relay: find a direct way to it. Raises nothing that ends its caller."""
        if peer.id in self._running or self._host.connections.is_direct(peer.id):
            return
        self._running[peer.id] = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._prepare, peer.id)
                direct = await self._reverse(peer.id)
            for _ in range(ATTEMPTS):
                if direct:
                    break
                direct = await self._lead(peer.id)
            await self._note(peer.id, direct)
        finally:
            self._running.pop(peer.id).set()

    async def answer(self, stream: INetStream, peer: Peer) -> None:
        """The other side of an attempt: told when to dial."""
        if self._host.connections.is_direct(peer.id):
            self._release(peer.id)
            return
        now = trio.current_time()
        if not self._peers.take(peer.id, now) or not self._all.take(None, now):
            raise OpenLoraError(ErrorCode.RATE_LIMITED, "too many hole punches")
        request = await receive_message(stream, Message, EXCHANGE_TIMEOUT_S)
        if request.type != Message.CONNECT:
            raise ProtocolError(ErrorCode.MALFORMED, "a hole punch begins with CONNECT")
        theirs = self._usable(unpack_addresses(list(request.ObsAddrs)))
        own = pack_addresses(self._external())
        await send_message(stream, Message(type=Message.CONNECT, ObsAddrs=own))
        if (await receive_message(stream, Message, EXCHANGE_TIMEOUT_S)).type != Message.SYNC:
            raise ProtocolError(ErrorCode.MALFORMED, "SYNC follows CONNECT")
        direct = await self._dial(peer.id, theirs, as_responder=False)
        if direct:
            await self._note(peer.id, True)
        else:
            self._release(peer.id)

    async def wait(self, peer: Peer) -> None:
        """This host came to `peer` through a relay: give the peer a moment to find a direct way. Raises nothing."""
        if peer.id in self._hopeless:
            return
        self._waiting[peer.id] = done = trio.Event()
        self._host.spawn(lambda: self._prepare(peer.id))
        try:
            with trio.move_on_after(PATIENCE_S):
                await done.wait()
        finally:
            self._waiting.pop(peer.id, None)

    async def _prepare(self, peer: str) -> None:
        """Find out where a NAT shows the listener's port, from the relay at hand."""
        for connection in self._host.connections.relayed(peer):
            for address in connection.get_transport_addresses():
                circuit = parse_circuit(str(address))
                if circuit is not None and self._learn is not None:
                    await self._learn(circuit)

    async def _lead(self, peer: str) -> bool:
        """One attempt as its starter."""
        stream: INetStream | None = None
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT_S):
                stream = await self._host.inner.new_stream(parse_peer_id(peer), [TProtocol(DCUTR_ID)])
                own = pack_addresses(self._external())
                asked = trio.current_time()
                await send_message(stream, Message(type=Message.CONNECT, ObsAddrs=own))
                reply = await receive_message(stream, Message, EXCHANGE_TIMEOUT_S)
                round_trip = trio.current_time() - asked
                if reply.type != Message.CONNECT:
                    return False
                await send_message(stream, Message(type=Message.SYNC))
            await trio.sleep(round_trip / 2)  # the SYNC is then there: both dial now
            return await self._dial(peer, self._usable(unpack_addresses(list(reply.ObsAddrs))), as_responder=True)
        except (OpenLoraError, trio.TooSlowError, *BROKEN) as error:
            logger.debug("hole punch to %s: %s", peer, type(error).__name__)
            return self._host.connections.is_direct(peer)
        finally:
            if stream is not None:
                await self._host.discard(stream)

    async def _reverse(self, peer: str) -> bool:
        """The peer may be reachable although it came through a relay: then a plain dial does."""
        store, peer_id = self._host.inner.get_peerstore(), parse_peer_id(peer)
        with trio.move_on_after(1):
            while not (peer_id in store.peer_ids() and store.get_protocols(peer_id)):  # noqa: ASYNC110 - no event
                await trio.sleep(0.05)
        known = list(texts_of(store.addrs(peer_id))) if peer_id in store.peers_with_addrs() else []
        wide = [a for a in known if not is_circuit(a) and (ip := ip_of(a)) and scope_of(ip) is Scope.GLOBAL]
        for address in wide[:2]:
            with trio.move_on_after(REVERSE_S):
                try:
                    await self._swarm.dial_addr(Multiaddr(plain(address)), peer_id)
                except (*BROKEN, BaseLibp2pError, ValueError):
                    continue
                return True
        return self._host.connections.is_direct(peer)

    async def _dial(self, peer: str, addresses: tuple[str, ...], *, as_responder: bool) -> bool:
        """Dial all addresses from the listener's port, again and again for a while, until one answers as the peer."""
        peer_id = parse_peer_id(peer)

        async def attempt(address: str, scope: trio.CancelScope) -> None:
            target, source = Multiaddr(address), self._host.source(address)
            for _ in range(MAX_REDIALS):
                if self._host.connections.is_direct(peer):
                    break
                try:
                    if as_responder:
                        await self._swarm.dial_addr_as_responder(target, peer_id, source)
                    else:
                        await self._swarm.dial_addr(target, peer_id, source)
                except (*BROKEN, BaseLibp2pError, ValueError) as error:
                    logger.debug("punching %s: %s", address, error.__cause__ or error)
                    await trio.sleep(random.uniform(*REFUSED_REDIAL_S) if _was_refused(error) else REDIAL_S)  # noqa: S311
            if self._host.connections.is_direct(peer):
                scope.cancel()

        with trio.move_on_after(PUNCH_S):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(attempt, address, nursery.cancel_scope)
        return self._host.connections.is_direct(peer)

    def _usable(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """What a peer may have this host dial: as far away as this host's own outside, no nearer."""
        widest = max((scope_of(ip) for a in self._external() if (ip := ip_of(a))), default=Scope.LOOPBACK)
        fit = [
            plain(a)
            for a in addresses
            if not is_circuit(a) and port_of(a) and (ip := ip_of(a)) and scope_of(ip) >= widest
        ]
        return tuple(dict.fromkeys(fit))[:MAX_DIALLED]

    async def _note(self, peer: str, direct: bool) -> None:
        if direct:
            self.succeeded += 1
            self._hopeless.pop(peer, None)
            self._host.spawn(lambda: self._retire(peer))
        else:
            self.failed += 1
            logger.info("no direct way to %s: it stays behind its relay", peer)
        self._release(peer)

    def _release(self, peer: str) -> None:
        """Whoever waits need wait no longer."""
        if not self._host.connections.is_direct(peer):
            self._hopeless[peer] = None
            if len(self._hopeless) > MAX_REMEMBERED:
                self._hopeless.popitem(last=False)
        waiting = self._waiting.get(peer)
        if waiting is not None:
            waiting.set()

    async def _retire(self, peer: str) -> None:
        """Close the relayed connection once nothing of this protocol's own runs on it any more."""
        while self._host.connections.is_direct(peer):
            await trio.sleep(RETIRE_AFTER_S)
            for connection in self._host.connections.relayed(peer):
                busy = any(str(s.get_protocol() or "").startswith("/openlora/") for s in connection.get_streams())
                if not busy and self._host.connections.is_direct(peer):
                    await cast(Yamux, connection.muxed_conn).close()
            if not self._host.connections.relayed(peer):
                return


def _was_refused(error: BaseException | None) -> bool:
    """Whether a dial met a reset, somewhere below the exceptions that wrap it."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ECONNREFUSED or "refused" in str(error):
            return True
        error = error.__cause__
    return False
