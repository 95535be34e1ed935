"""Names and addresses of whoever speaks HTTP here: which Host is this machine's, whose address counts in a bucket."""

from __future__ import annotations

import ipaddress

IPV6_SITE = 64
"""Bits of an IPv6 address that one customer of a network has to itself."""


def is_address(host: str) -> bool:
    """Whether a Host header names an IP address or localhost: these a web page cannot rebind to a server here."""
    name, _, port = host.strip().lower().rpartition(":")
    if not port.isdecimal() or (name.startswith("[") and not name.endswith("]")):
        name = host.strip().lower()
    name = name.removeprefix("[").removesuffix("]") if name.startswith("[") and name.endswith("]") else name
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def site_of(text: str) -> str | None:
    """What an address counts as: IPv4 as it is, of IPv6 the first 64 bits; None for what is no address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_SITE), strict=False).network_address)
    return str(address)
