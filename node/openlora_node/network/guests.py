"""Strangers who came in, to a host or to a service: so many from one place, and room kept for others. Pure.

A key costs nothing, an address does: without this, one machine with fresh keys takes every connection of a host and
every session of a service. Registered nodes, whose keys cost a stake, are no guests. A place is an IPv4 address or the
first 64 bits of an IPv6 address, what one customer of a network has to itself; all who come through relays share one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

SITE_BITS = 64
LEAST_PER_PLACE = 8


class Guests:
    """Strangers by place."""

    def __init__(self, most: int, per_place: int = 0) -> None:
        """`most`: room for all, guests or not; an eighth of it is kept free of guests.

        `per_place`: 0 for an eighth of all, at least eight.
        """
        self._most = max(1, most - most // 8)
        self._per_place = per_place or max(LEAST_PER_PLACE, most // 8)
        self._here: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._here.total()

    def enter(self, ip: str | None) -> bool:
        """Count one more from there; False where it may not come in."""
        place = place_of(ip)
        if self._here[place] >= self._per_place or len(self) >= self._most:
            return False
        self._here[place] += 1
        return True

    def leave(self, ip: str | None) -> None:
        """One of those that came in is gone."""
        place = place_of(ip)
        self._here[place] -= 1
        if self._here[place] <= 0:
            del self._here[place]


def place_of(ip: str | None) -> str:
    """What an address counts as; None, an unknown one, and text that is no address are places of their own."""
    if ip is None:
        return ""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, SITE_BITS), strict=False))
    return str(address)
