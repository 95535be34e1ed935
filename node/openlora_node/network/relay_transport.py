"""Connections through a relay, as libp2p's transports see them: dialled by circuit address, carried by one stream.

libp2p 0.8.1 dials a circuit address by TCP, at the relay, as if the relay were the target; here TCP refuses it.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from libp2p.abc import IListener, INetConn, INetStream, IRawConnection, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import OpenLoraError
from . import patches
from .reach_addresses import Circuit, ip_of, is_circuit, normal_ip, parse_circuit, port_of
from .stream import BROKEN

CLOSE_TIMEOUT_S = 1.0

CircuitDialer = Callable[[Circuit], Awaitable[INetStream]]


class DirectTCP(TCP):
    """TCP, for addresses that end at the peer itself."""

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether this is a plain TCP address."""
        return not is_circuit(str(maddr)) and super().can_dial(maddr)

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> IRawConnection:
        """Dial from a port that is listened on. libp2p's own loses the socket when it is cancelled."""
        host, port = ip_of(str(maddr)), port_of(str(maddr))
        if host is None or not port:
            raise OpenConnectionError("only an IP address and a port can be dialled from a given port")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            await sock.bind(source)
            await sock.connect((host, port))
        except OSError as error:
            sock.close()
            raise OpenConnectionError(f"dialling from port {source[1]} failed") from error
        except BaseException:
            sock.close()
            raise
        return RawConnection(TrioTCPStream(trio.SocketStream(sock)), True)


class CircuitStream(ReadWriteCloser):
    """A stream to a relay, or from one, as the wire of a connection: its orderly end is an end of file."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Some bytes; none at the end."""
        try:
            return await self._stream.read(n)
        except StreamEOF:
            return b""
        except BROKEN as error:
            raise ConnectionClosedError("the circuit broke", transport="circuit") from error

    async def write(self, data: bytes) -> None:
        """All of `data`."""
        try:
            await self._stream.write(data)
        except BROKEN as error:
            raise ConnectionClosedError("the circuit broke", transport="circuit") from error

    async def close(self) -> None:
        """End the stream. Never raises, never waits long."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
            try:
                await self._stream.close()
            except BROKEN:
                return

    def get_remote_address(self) -> tuple[str, int] | None:
        """None: the IP at the other end is the relay's."""
        return None


def circuit_connection(stream: INetStream, circuit: Circuit, *, is_initiator: bool) -> RawConnection:
    """A stream as an unsecured connection to `circuit.target`."""
    return RawConnection(CircuitStream(stream), is_initiator, ConnectionType.RELAYED, [Multiaddr(str(circuit))])


class CircuitTransport(ITransport):
    """Dials circuit addresses once a relay client has set `dialer`."""

    def __init__(self) -> None:
        self.dialer: CircuitDialer | None = None

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """A connection through the relay that the address names."""
        circuit = parse_circuit(str(maddr))
        if circuit is None or not circuit.target or self.dialer is None:
            raise OpenConnectionError("no circuit address that this host can dial")
        try:
            stream = await self.dialer(circuit)
        except OpenLoraError as error:
            raise OpenConnectionError(error.message) from error
        return circuit_connection(stream, circuit, is_initiator=True)

    def create_listener(self, handler_function: THandler) -> IListener:
        """Circuits come in as streams of the relay: there is nothing to listen on."""
        raise OpenConnectionError("circuits are not listened for")

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether this is a circuit address and relays are used."""
        return self.dialer is not None and is_circuit(str(maddr))

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Never."""
        return False

    def protocols(self) -> list[str]:
        """What the transport manager looks for in an address."""
        return ["p2p-circuit"]


def is_relayed(connection: INetConn) -> bool:
    """Whether a connection runs through a relay."""
    return connection.get_connection_type() is ConnectionType.RELAYED


def remote_ip(connection: INetConn) -> str | None:
    """The peer's IP, in its normal spelling; None through a relay."""
    if is_relayed(connection):
        return None
    muxer = cast(Yamux, connection.muxed_conn)
    found = muxer.get_remote_address()
    try:
        return normal_ip(found[0] if found else patches._remote_host(_raw(muxer).stream))
    except (ValueError, AttributeError):
        return None


def stream_ip(stream: INetStream) -> str | None:
    """The IP at the other end of an inbound stream; None through a relay."""
    connection = getattr(stream, "swarm_conn", None)
    return remote_ip(connection) if connection is not None else None


def local_port(connection: INetConn) -> int:
    """The own port that a direct connection runs on; 0 when unknown."""
    try:
        return int(_raw(cast(Yamux, connection.muxed_conn)).stream.stream.socket.getsockname()[1])  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return 0


def _raw(muxer: Yamux) -> RawConnection:
    raw: RawConnection = muxer.secured_conn.conn.read_writer.read_write_closer  # type: ignore[attr-defined]
    return raw
