"""Who is connected and how: the peers of a host with their connections. In the network's thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import trio
from libp2p.network.swarm import Swarm
from libp2p.rcmgr import Direction
from libp2p.stream_muxer.yamux.yamux import Yamux

from .host import Host
from .identity import Peer
from .relay_transport import is_relayed


@dataclass(frozen=True)
class Line:
    """One connection. `rtt_ms` is None before the first answer to a ping."""

    address: str
    relayed: bool
    outbound: bool
    rtt_ms: float | None
    protocols: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A connected peer; `points` are its faults, a hundred keep it out."""

    peer: Peer
    lines: tuple[Line, ...]
    points: float

    @property
    def direct(self) -> bool:
        """Whether one of the connections is free of relays."""
        return any(not line.relayed for line in self.lines)


def links(host: Host) -> tuple[Link, ...]:
    """All connected peers."""
    swarm, found = cast(Swarm, host.inner.get_network()), []
    for peer_id, connections in list(swarm.connections.items()):
        lines = []
        for connection in connections:
            if connection.is_closed:
                continue
            rtt = cast(Yamux, connection.muxed_conn).rtt()
            addresses = connection.get_transport_addresses()
            lines.append(
                Line(
                    address=str(addresses[0]) if addresses else "",
                    relayed=is_relayed(connection),
                    outbound=getattr(connection, "direction", None) is Direction.OUTBOUND,
                    rtt_ms=round(1000 * rtt, 2) if rtt > 0 else None,
                    protocols=tuple(
                        sorted({str(s.get_protocol()) for s in connection.get_streams() if s.get_protocol()})
                    ),
                )
            )
        if lines:
            peer = host.peer(peer_id)
            found.append(Link(peer, tuple(lines), host.scores.points(peer.id, trio.current_time())))
    return tuple(found)


def ban(host: Host, peer: str, seconds: float) -> None:
    """Close a peer's connections and keep it out; 0 seconds let it in again."""
    host.scores.deny(peer, trio.current_time(), seconds)
    if seconds:
        host.drop(peer)
