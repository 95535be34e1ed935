"""Under which addresses peers see this host: what identify reports, kept per connection and told to nobody.

Stands in for libp2p's own collection, which would advertise the ports of outbound connections.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from libp2p.abc import INetConn
from libp2p.host.observed_addr_manager import NATDeviceType
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from .reach_addresses import ip_of, tcp_address
from .relay_transport import is_relayed, remote_ip

MAX_OBSERVATIONS = 4096
MAX_IPS = 4


class Observed:
    """The collection. Its first methods are those that libp2p calls."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._seen: dict[int, tuple[str, str]] = {}
        """Connection → observer's IP, own IP as it sees it."""
        self._mapped: dict[int, str] = {}
        """Connection from the listener's port → own address as the observer sees it."""

    def record_observation(self, conn: INetConn, observed: Multiaddr, _listen: Sequence[Multiaddr]) -> None:
        """Identify told how the peer at the other end of `conn` sees this host."""
        ip, observer = ip_of(str(observed)), remote_ip(conn)
        if ip is None or observer is None or is_relayed(conn) or ipaddress.ip_address(ip).is_unspecified:
            return
        before = self.ips()
        if len(self._seen) < MAX_OBSERVATIONS:
            self._seen[id(conn)] = (observer, ip)
        if self.ips() != before:
            self._changed()

    def remove_conn(self, conn: INetConn) -> None:
        """A connection ended."""
        self._seen.pop(id(conn), None)
        self._mapped.pop(id(conn), None)

    def addrs(self, min_observers: int = 0) -> list[Multiaddr]:
        """Nothing: what is told to others is decided elsewhere."""
        return []

    def get_nat_type(self) -> tuple[Any, Any]:
        """Not found out here."""
        return (NATDeviceType.UNKNOWN, NATDeviceType.UNKNOWN)

    def ips(self) -> tuple[str, ...]:
        """Own IPs, those that most observers see first. An observer is an IP, however many peers it runs."""
        votes = Counter(ip for _, ip in set(self._seen.values()))
        return tuple(ip for ip, _ in votes.most_common(MAX_IPS))

    def by(self, conn: INetConn) -> str:
        """The own IP as the peer of this connection sees it; empty while it has not said."""
        return self._seen.get(id(conn), ("", ""))[1]

    def note_mapping(self, conn: INetConn, ip: str, port: int) -> None:
        """The peer of a connection from the listener's port sees it at `ip` and `port`."""
        self._mapped[id(conn)] = tcp_address(ip, port)

    def is_mapped_by(self, connections: Iterable[INetConn]) -> bool:
        """Whether one of these connections has told."""
        return any(id(conn) in self._mapped for conn in connections)

    def mappings(self) -> tuple[str, ...]:
        """Own addresses where a NAT shows the listener's port."""
        return tuple(address for address, _ in Counter(self._mapped.values()).most_common(MAX_IPS))
