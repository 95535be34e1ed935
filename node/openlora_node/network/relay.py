"""Uses relays (circuit relay v2, client and stop side): reserve a slot, dial through one, take what comes through one.

What travels is Noise and Yamux end to end over the relayed stream: the relay sees neither content nor keys.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError
from . import patches
from .host import Host
from .identity import Peer, parse_peer_id
from .nat_wire import receive_message, send_message, unpack_addresses
from .reach_addresses import Circuit, Scope, ip_of, is_circuit, plain, scope_of
from .relay_hop import HOP_ID, STOP_ID
from .relay_transport import circuit_connection
from .stream import BROKEN

HOP_TIMEOUT_S = 10.0
MAX_RESERVATION_S = 24 * 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reservation:
    """A slot at a relay. `expires` in unix seconds; `addresses` are circuit addresses of this host, without its id."""

    relay: str
    addresses: tuple[str, ...]
    expires: float


class RelayClient:
    """The client side on a host. `takes(relay)` says whether circuits through that relay are expected."""

    def __init__(self, host: Host, takes: Callable[[str], bool], came: Callable[[Peer], Awaitable[None]]) -> None:
        self._host = host
        self._takes = takes
        self._came = came
        self._swarm = cast(Swarm, host.inner.get_network())
        host.circuits.dialer = self._dial
        host.handle(STOP_ID, self._stop)

    async def reserve(self, relay: str) -> Reservation:
        """Reserve or renew a slot at a directly connected relay. Raises NODE_LOST, BUSY when it refuses."""
        reply, stream = await self._ask(relay, HopMessage(type=HopMessage.RESERVE))
        await self._host.discard(stream)
        if reply.type != HopMessage.STATUS or reply.status != Status.OK or not reply.HasField("reservation"):
            raise OpenLoraError(ErrorCode.BUSY, "the relay has no slot to give", retry_after_ms=60_000)
        places = self._places(relay, unpack_addresses(list(reply.reservation.addrs)))
        if not places:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the relay named no address to dial it at")
        expires = min(float(reply.reservation.expire), time.time() + MAX_RESERVATION_S)
        return Reservation(relay, tuple(str(Circuit(place, relay)) for place in places), expires)

    def _places(self, relay: str, named: tuple[str, ...]) -> tuple[str, ...]:
        """Where others dial the relay: at the IP under which this host reached it, first of all by its own word."""
        ip = self._host.connections.ip_of(relay)
        plain_named = [plain(address) for address in named if not is_circuit(address)]
        dialled = self._host.connections.dialled(relay)
        fit = [a for a in plain_named if ip_of(a) == ip]
        wide = [a for a in plain_named if (known := ip_of(a)) and scope_of(known) is Scope.GLOBAL]
        return tuple(dict.fromkeys([*([dialled] if dialled else []), *fit, *wide]))[:1]

    async def _ask(self, relay: str, message: HopMessage) -> tuple[HopMessage, INetStream]:
        if not self._host.connections.is_direct(relay):
            raise OpenLoraError(ErrorCode.NODE_LOST, "a relay is used over a direct connection only")
        stream: INetStream | None = None
        try:
            with trio.fail_after(HOP_TIMEOUT_S):
                stream = await self._host.inner.new_stream(parse_peer_id(relay), [TProtocol(HOP_ID)])
                await send_message(stream, message)
                return await receive_message(stream, HopMessage, HOP_TIMEOUT_S), stream
        except (OpenLoraError, trio.TooSlowError, *BROKEN) as error:
            if stream is not None:
                await self._host.discard(stream)
            raise OpenLoraError(ErrorCode.NODE_LOST, "the relay did not answer as one") from error

    async def _dial(self, circuit: Circuit) -> INetStream:
        """A stream through a relay to the target. Raises NODE_LOST."""
        if circuit.relay in (self._host.id, circuit.target):
            raise OpenLoraError(ErrorCode.NODE_LOST, "this relay leads nowhere")
        await self._host.connect(circuit.relay, [circuit.relay_address])
        peer = PeerId(id=parse_peer_id(circuit.target).to_bytes())
        reply, stream = await self._ask(circuit.relay, HopMessage(type=HopMessage.CONNECT, peer=peer))
        if reply.type == HopMessage.STATUS and reply.status == Status.OK:
            return stream
        await self._host.discard(stream)
        raise OpenLoraError(ErrorCode.NODE_LOST, f"the relay gave no circuit: {_name(reply.status)}")

    async def _stop(self, stream: INetStream, relay: Peer) -> None:
        """Take a circuit that a relay brings; lasts as long as the connection through it."""
        request = await receive_message(stream, StopMessage)
        source = ID(request.peer.id)
        if request.type != StopMessage.CONNECT:
            await send_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.UNEXPECTED_MESSAGE))
            return
        denied = self._host.scores.is_denied(source.to_base58(), trio.current_time())
        if denied or not self._takes(relay.id):
            await send_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.PERMISSION_DENIED))
            return
        await send_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        place = self._host.connections.dialled(relay.id) or "/ip4/0.0.0.0/tcp/0"
        circuit = Circuit(place, relay.id, source.to_base58())
        raw = circuit_connection(stream, circuit, is_initiator=False)
        try:
            muxer = cast(Yamux, await self._swarm.upgrade_inbound_raw_conn(raw, Multiaddr(str(circuit))))
        except (BaseLibp2pError, OSError) as error:
            logger.debug("a circuit from %s came to nothing: %s", source, type(error).__name__)
            return
        if muxer.peer_id != source:  # the relay named another than the one who came
            patches.abort(muxer)
            return
        self._host.spawn(lambda: self._came(self._host.peer(source)))
        await muxer.event_closed.wait()


def _name(status: Status.ValueType) -> str:
    try:
        return Status.Name(status).lower().replace("_", " ")
    except ValueError:
        return "for no reason that is known here"
