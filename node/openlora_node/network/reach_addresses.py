"""Addresses as reachability sees them: which IP, how far it carries, which relay, and which ones to claim. Pure.

Text multiaddrs throughout. A circuit address is `<relay's address>/p2p/<relay>/p2p-circuit`, with or without the
target's `/p2p/…` at its end.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

CIRCUIT = "/p2p-circuit"
MAX_CLAIMS = 8
MAX_ADDRESS_CHARACTERS = 256
MAX_KNOWN = 64
"""Addresses of one peer that are looked at."""


class Scope(IntEnum):
    """How far an IP address carries."""

    LOOPBACK = 0
    PRIVATE = 1
    """A local network, or one behind a NAT, a carrier's included."""
    GLOBAL = 2


@dataclass(frozen=True)
class Circuit:
    """A place behind a relay."""

    relay_address: str
    """Without the relay's peer id."""
    relay: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.relay_address}/p2p/{self.relay}{CIRCUIT}" + (f"/p2p/{self.target}" if self.target else "")


def texts_of(addresses: Iterable[object], most: int = MAX_KNOWN) -> tuple[str, ...]:
    """Multiaddrs as text, without those that are none: libp2p keeps whatever bytes a peer calls an address."""
    found: list[str] = []
    for address in addresses:
        try:
            text = str(address)
        except Exception:  # noqa: BLE001, S112 - a stranger's bytes: each codec of multiaddr raises what it likes
            continue
        if len(text) <= MAX_ADDRESS_CHARACTERS:
            found.append(text)
            if len(found) == most:
                break
    return tuple(found)


def normal_ip(text: str) -> str:
    """One spelling an address; IPv4 inside IPv6 is IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def ip_of(address: str) -> str | None:
    """The IP that a multiaddr starts with; None for names and for what is none."""
    parts = address.split("/")
    if len(parts) < 3 or parts[0] or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        return normal_ip(parts[2])
    except ValueError:
        return None


def port_of(address: str) -> int:
    """The TCP port of a multiaddr; 0 when it has none."""
    _, _, rest = address.partition("/tcp/")
    port = rest.partition("/")[0]
    return int(port) if port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16 else 0


def tcp_address(ip: str, port: int) -> str:
    """IP and port as a multiaddr."""
    return f"/ip{6 if ':' in ip else 4}/{ip}/tcp/{port}"


def scope_of(ip: str) -> Scope:
    """How far an IP address carries."""
    address = ipaddress.ip_address(ip)
    if address.is_loopback:
        return Scope.LOOPBACK
    return Scope.GLOBAL if address.is_global else Scope.PRIVATE


def is_loopback(ip: str | None) -> bool:
    """Whether an IP is this machine's own; a name is not known to be."""
    return ip is not None and scope_of(ip) is Scope.LOOPBACK


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay."""
    return CIRCUIT in address


def parse_circuit(address: str) -> Circuit | None:
    """The parts of a circuit address over one TCP relay; None for anything else, relays behind relays included."""
    head, found, tail = address.partition(CIRCUIT)
    place, _, relay = head.rpartition("/p2p/")
    is_plain = bool(found and place and relay) and not any("/p2p" in part for part in (place, relay))
    target = tail.removeprefix("/p2p/")
    if not is_plain or "/" in target or (tail and target == tail) or len(address) > MAX_ADDRESS_CHARACTERS:
        return None
    return Circuit(place, relay, target)


def plain(address: str) -> str:
    """An address without the peer id at its end."""
    if is_circuit(address):
        circuit = parse_circuit(address)
        return str(Circuit(circuit.relay_address, circuit.relay)) if circuit else address
    return address.partition("/p2p/")[0]


def claims(
    observed: Iterable[str], listen: Sequence[str], announce: Sequence[str], interfaces: Iterable[str]
) -> tuple[str, ...]:
    """Addresses under which this host may be reachable, most promising first, at most eight.

    `observed`: IPs under which peers see us, most often seen first; `interfaces`: IPs of own interfaces. What the
    operator announces comes alone: it is what others will be told.
    """
    if announce:
        return tuple(dict.fromkeys(announce))[:MAX_CLAIMS]
    found: list[str] = []
    for ip in observed:
        found += [tcp_address(ip, port_of(a)) for a in listen if _same_family(ip, a)]
    for address in listen:
        own = ip_of(address)
        if own and not ipaddress.ip_address(own).is_unspecified:
            found.append(plain(address))
        else:
            found += [tcp_address(each, port_of(address)) for each in interfaces if _same_family(each, address)]
    return tuple(dict.fromkeys(found))[:MAX_CLAIMS]


def seen_from(observed: str, claimed: Sequence[str]) -> tuple[str, ...]:
    """What to ask a peer to dial that sees this host at the IP `observed`: it dials nothing else. Names become that IP.

    All that is claimed while the peer has not said how it sees this host.
    """
    if not observed:
        return tuple(claimed)
    named = [tcp_address(observed, port_of(a)) for a in claimed if a.startswith("/dns") and port_of(a)]
    fit = [a for a in claimed if ip_of(a) == observed]
    return tuple(dict.fromkeys([*fit, *named])) or tuple(claimed)


def dialable(addresses: Iterable[str], observed_ip: str, most: int) -> tuple[str, ...]:
    """Of what an asker claims, what a dial-back may try: its own observed IP over TCP and nothing else.

    Any other address would let the asker point this host at a victim.
    """
    fit = (a for a in addresses if not is_circuit(a) and ip_of(a) == observed_ip and port_of(a))
    return tuple(dict.fromkeys(tcp_address(observed_ip, port_of(a)) for a in fit))[:most]


def _same_family(ip: str, address: str) -> bool:
    return (":" in ip) == address.startswith("/ip6/")
