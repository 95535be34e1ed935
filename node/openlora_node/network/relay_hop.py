"""Serves as a relay (circuit relay v2, hop side): reservations, and circuits to peers that have reserved.

libp2p 0.8.1's own is not used: it reserves in whatever peer's name the asker writes, keeps one circuit a peer (a second
one closes the first), looks at its limits only between reads, and writes status messages into the relayed bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, Status, StopMessage

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from .host import Host
from .identity import Peer, parse_peer_id
from .nat_wire import pack_addresses, receive_message, send_message
from .reach_addresses import is_circuit
from .relay_table import RelayLimits, RelayTable
from .relay_transport import stream_ip
from .stream import BROKEN

HOP_ID = "/libp2p/circuit/relay/0.2.0/hop"
STOP_ID = "/libp2p/circuit/relay/0.2.0/stop"
STOP_TIMEOUT_S = 10.0
CHUNK = 1 << 16
PRUNE_EVERY_S = 10.0

logger = logging.getLogger(__name__)


class HopService:
    """The relay. `serves` says whether this host may relay now: one that cannot be reached must not."""

    def __init__(self, host: Host, limits: RelayLimits, serves: Callable[[], bool]) -> None:
        self.table = RelayTable(limits)
        self._host = host
        self._limits = limits
        self._serves = serves
        host.handle(HOP_ID, self.answer)

    async def answer(self, stream: INetStream, peer: Peer) -> None:
        """Serve one request; a circuit lasts as long as this call."""
        request = await receive_message(stream, HopMessage)
        ip = stream_ip(stream)
        if ip is None:
            await _status(stream, Status.PERMISSION_DENIED)  # no relays behind relays
        elif request.type == HopMessage.RESERVE:
            await self._reserve(stream, peer.id, ip)
        elif request.type == HopMessage.CONNECT:
            await self._connect(stream, peer.id, request.peer.id)
        else:
            await _status(stream, Status.UNEXPECTED_MESSAGE)
            raise ProtocolError(ErrorCode.MALFORMED, "neither a reservation nor a circuit")

    async def prune(self) -> None:
        """Forget reservations of peers that left. Until cancelled."""
        while True:
            await trio.sleep(PRUNE_EVERY_S)
            for peer in self.table.peers():
                if not self._host.connections.is_direct(peer):
                    self.table.release(peer)

    async def _reserve(self, stream: INetStream, peer: str, ip: str) -> None:
        if not self._serves():
            await _status(stream, Status.RESERVATION_REFUSED)
            return
        until = self.table.reserve(peer, ip, time.time())
        if until is None:
            await _status(stream, Status.RESERVATION_REFUSED)
            return
        own = tuple(address for address in map(str, self._host.told()) if not is_circuit(address))
        reservation = Reservation(expire=int(until), addrs=pack_addresses(own))
        await _status(stream, Status.OK, reservation=reservation, limit=self._limit())

    async def _connect(self, stream: INetStream, source: str, packed: bytes) -> None:
        try:
            target = parse_peer_id(ID(packed).to_base58())
        except (OpenLoraError, ValueError):
            await _status(stream, Status.MALFORMED_MESSAGE)
            return
        name = target.to_base58()
        if not self.table.holds(name, time.time()) or not self._host.connections.is_direct(name):
            await _status(stream, Status.NO_RESERVATION)
        elif not self.table.open(source, name):
            await _status(stream, Status.RESOURCE_LIMIT_EXCEEDED)
        else:
            try:
                await self._circuit(stream, source, target)
            finally:
                self.table.close(source, name)

    async def _circuit(self, stream: INetStream, source: str, target: ID) -> None:
        far = await self._stop(source, target)
        if far is None:
            await _status(stream, Status.CONNECTION_FAILED)
            return
        whole = False
        try:
            await _status(stream, Status.OK, limit=self._limit())
            whole = await self._carry(stream, far)
        finally:
            if not whole:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await _reset(far)
                    await _reset(stream)
        await self._host.discard(far)

    async def _carry(self, near: INetStream, far: INetStream) -> bool:
        """Carry bytes both ways to both ends. False when a side broke or a limit was reached."""
        with trio.move_on_after(self._limits.circuit_s) as scope:

            async def one_way(source: INetStream, sink: INetStream) -> None:
                if not await self._pump(source, sink):
                    scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_way, near, far)
                nursery.start_soon(one_way, far, near)
        return not scope.cancelled_caught

    async def _stop(self, source: str, target: ID) -> INetStream | None:
        """A stream to the target on which it took the circuit."""
        far: INetStream | None = None
        try:
            with trio.fail_after(STOP_TIMEOUT_S):
                far = await self._host.inner.new_stream(target, [TProtocol(STOP_ID)])
                peer = PeerId(id=parse_peer_id(source).to_bytes())
                await send_message(far, StopMessage(type=StopMessage.CONNECT, peer=peer, limit=self._limit()))
                reply = await receive_message(far, StopMessage, STOP_TIMEOUT_S)
            if reply.type == StopMessage.STATUS and reply.status == Status.OK:
                return far
        except (OpenLoraError, trio.TooSlowError, *BROKEN) as error:
            logger.debug("no circuit to %s: %s", target, type(error).__name__)
        if far is not None:
            await _reset(far)
        return None

    async def _pump(self, source: INetStream, sink: INetStream) -> bool:
        """Carry bytes one way. True at their orderly end."""
        left = self._limits.circuit_bytes
        try:
            while True:
                try:
                    data = await source.read(CHUNK)
                except StreamEOF:
                    data = b""
                if not data:
                    await cast(NetStream, sink).close_write()
                    return True
                left -= len(data)
                if left < 0:
                    return False
                await sink.write(data)
        except BROKEN:
            return False

    def _limit(self) -> Limit:
        return Limit(duration=self._limits.circuit_s, data=self._limits.circuit_bytes)


async def _status(
    stream: INetStream,
    status: Status.ValueType,
    reservation: Reservation | None = None,
    limit: Limit | None = None,
) -> None:
    await send_message(stream, HopMessage(type=HopMessage.STATUS, status=status, reservation=reservation, limit=limit))


async def _reset(stream: INetStream) -> None:
    try:
        await stream.reset()
    except BROKEN:
        return
