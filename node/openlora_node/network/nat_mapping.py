"""Asks a relay under which address a NAT shows the port that this host listens on.

Most NATs keep the port, or map it the same way for every destination; then what one peer sees holds for the next one.
The question needs a connection from that very port, which is kept: it keeps the mapping alive.
"""

from __future__ import annotations

import logging
from typing import cast

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.swarm import Swarm
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import OpenLoraError
from .host import Host
from .identity import parse_peer_id
from .nat_observed import Observed
from .nat_wire import receive_message, unpack_addresses
from .reach_addresses import Circuit, ip_of, port_of
from .relay_transport import local_port
from .stream import BROKEN

IDENTIFY_ID = "/ipfs/id/1.0.0"
TIMEOUT_S = 3.0
MAX_IDENTIFY_BYTES = 1 << 16

logger = logging.getLogger(__name__)


class Mappings:
    """Learns mappings into `observed`, once a relay connection."""

    def __init__(self, host: Host, observed: Observed) -> None:
        self._host = host
        self._observed = observed
        self._swarm = cast(Swarm, host.inner.get_network())
        self._learning: set[str] = set()

    async def learn(self, circuit: Circuit) -> None:
        """Ask the relay of `circuit`. Raises nothing, takes three seconds at most."""
        relay = circuit.relay
        if relay in self._learning or self._observed.is_mapped_by(self._connections(relay)):
            return
        self._learning.add(relay)
        try:
            with trio.move_on_after(TIMEOUT_S):
                connection = await self._from_listener(circuit)
                if connection is not None:
                    await self._identify(connection)
        except (OpenLoraError, *BROKEN, BaseLibp2pError, ValueError) as error:
            logger.debug("mapping by %s: %s", relay, type(error).__name__)
        finally:
            self._learning.discard(relay)

    async def _from_listener(self, circuit: Circuit) -> INetConn | None:
        """A connection to the relay from the listener's port: one that there is, or a second one."""
        ports = self._host.ports()
        for connection in self._connections(circuit.relay):
            if local_port(connection) in ports:
                return connection
        place, source = circuit.relay_address, self._host.source(circuit.relay_address)
        if not port_of(place) or source is None:
            return None
        return await self._swarm.dial_addr(Multiaddr(place), parse_peer_id(circuit.relay), source)

    async def _identify(self, connection: INetConn) -> None:
        """libp2p's own identify does not say which of two connections the answer came by."""
        stream: INetStream = await connection.new_stream()
        try:
            talk = MultiselectCommunicator(stream)
            await self._host.inner.multiselect_client.select_one_of([TProtocol(IDENTIFY_ID)], talk)
            told = await receive_message(stream, Identify, TIMEOUT_S, MAX_IDENTIFY_BYTES)
        finally:
            await self._host.discard(stream)
        seen = next(iter(unpack_addresses([told.observed_addr])), "")
        ip, port = ip_of(seen), port_of(seen)
        if ip is not None and port and local_port(connection) in self._host.ports():
            self._observed.note_mapping(connection, ip, port)

    def _connections(self, relay: str) -> tuple[INetConn, ...]:
        return tuple(c for c in self._swarm.connections.get(parse_peer_id(relay), ()) if not c.is_closed)
