"""The connections of a host, asked about: which are direct, which a relay carries, how far away the other end is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from libp2p.abc import INetConn
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from libp2p.stream_muxer.yamux.yamux import Yamux

from .identity import parse_peer_id
from .reach_addresses import plain
from .relay_transport import is_relayed, remote_ip


class Connections:
    """What is open now. Peers are named by their ids; a peer that is not connected has no connection."""

    def __init__(self, inner: BasicHost) -> None:
        self._inner = inner
        self._swarm = cast(Swarm, inner.get_network())

    def of(self, peer: str) -> tuple[INetConn, ...]:
        """All to one peer, closing ones included."""
        return tuple(self._swarm.connections.get(parse_peer_id(peer), ()))

    def all(self) -> Iterator[tuple[ID, INetConn]]:
        """Every connection and whom it leads to, as of now."""
        for peer, connections in list(self._swarm.connections.items()):
            for connection in list(connections):
                yield peer, connection

    def peers(self) -> tuple[ID, ...]:
        """Whom a connection leads to that is open."""
        return tuple(dict.fromkeys(peer for peer, connection in self.all() if not connection.is_closed))

    def is_open(self, peer: str) -> bool:
        """Whether a connection to the peer is open."""
        return any(not connection.is_closed for connection in self.of(peer))

    def is_direct(self, peer: str) -> bool:
        """Whether a connection to the peer is open that no relay carries."""
        return self.direct(peer) is not None

    def direct(self, peer: str) -> INetConn | None:
        """A connection to the peer that no relay carries."""
        return next((c for c in self.of(peer) if not c.is_closed and not is_relayed(c)), None)

    def relayed(self, peer: str) -> tuple[INetConn, ...]:
        """Connections to the peer through relays."""
        return tuple(c for c in self.of(peer) if is_relayed(c))

    def rtt(self, peer: str) -> float | None:
        """Seconds for a ping and its answer, smoothed; None while unknown."""
        known = [cast(Yamux, c.muxed_conn).rtt() for c in self.of(peer)]
        return min((rtt for rtt in known if rtt > 0), default=None)

    def ip_of(self, peer: str) -> str | None:
        """The IP of a directly connected peer."""
        connection = self.direct(peer)
        return remote_ip(connection) if connection is not None else None

    def dialled(self, peer: str) -> str:
        """The address at which this host reached a peer directly; empty when the peer dialled."""
        connection = self.direct(peer)
        if connection is None or getattr(connection, "direction", None) is not Direction.OUTBOUND:
            return ""
        return next((plain(str(address)) for address in connection.get_transport_addresses()), "")

    def speaks(self, peer: str, protocol: str) -> bool:
        """Whether a peer said by identify that it speaks a protocol."""
        store, peer_id = self._inner.get_peerstore(), parse_peer_id(peer)
        return peer_id in store.peer_ids() and protocol in store.get_protocols(peer_id)


def is_frozen(connection: INetConn, now: float, after: float) -> bool:
    """Whether a ping waits for its answer longer than `after` seconds. libp2p pings and does nothing about it."""
    muxer = cast(Yamux, connection.muxed_conn)
    asked = muxer._ping_sent_time > 0 and not muxer._ping_event.is_set()
    return asked and now - muxer._ping_sent_time > after
