"""The kinds of value that name a place in a network: listeners, URLs, multiaddrs. Resolves no name, opens no socket."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from .kinds import Kind


@dataclass(frozen=True)
class HostPort:
    """Where a TCP server listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether it means every interface."""
        return self.host != "localhost" and ipaddress.ip_address(self.host).is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Listen(Kind):
    """`127.0.0.1:9470`, `[::1]:9470`, `localhost:9470`; port 0 lets the system choose."""

    name = "address:port"
    _form = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15}|localhost)):([0-9]{1,5})")

    def read(self, value: object) -> HostPort:
        """An IP address or `localhost`, and a port: a name could come to mean another interface."""
        match = self._form.fullmatch(value) if isinstance(value, str) else None
        if not match or int(match[3]) > 65535:
            raise ValueError("write an IP address and a port, such as 127.0.0.1:9470 or [::1]:9470")
        host = match[1] or match[2]
        if host != "localhost":
            version = 6 if match[1] else 4
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                raise ValueError(f"write a valid IPv{version} address before the port") from None
            if address.version != version:
                raise ValueError("write brackets around IPv6 addresses only")
            host = str(address)
        return HostPort(host, int(match[3]))


@dataclass(frozen=True)
class HttpUrl(Kind):
    """An http or https URL without credentials."""

    name = "URL"

    def read(self, value: object) -> str:
        """The URL as written, once scheme, host and port are known to parse."""
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            valid = valid and "@" not in parts.netloc and not parts.fragment
            valid = valid and str(value).isprintable() and " " not in str(value)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("write a URL such as https://rpc.example.org")
        return str(value)


@dataclass(frozen=True)
class Multiaddr(Kind):
    """A libp2p address over TCP. Its full meaning is libp2p's; here only the form is checked, without importing it."""

    use: str
    """`listen`: an own interface. `announce`: reachable from outside. `dial`: a peer, with its id."""
    name = "multiaddr"
    _form = re.compile(
        r"/(?:(?P<version>ip[46])/(?P<ip>[0-9a-fA-F:.]{2,45})|dns[46]?/(?P<dns>[A-Za-z0-9.-]{1,253}))"
        r"/tcp/(?P<port>[0-9]{1,5})(?P<ws>/ws)?(?P<peer>/p2p/[1-9A-HJ-NP-Za-km-z]{40,64})?"
    )

    def read(self, value: object) -> str:
        """The address as written."""
        match = self._form.fullmatch(value) if isinstance(value, str) else None
        if not match or int(match["port"]) > 65535:
            raise ValueError(f"write a TCP multiaddr, such as {self.example}")
        if match["ip"] is not None:
            try:
                address = ipaddress.ip_address(match["ip"])
            except ValueError:
                raise ValueError("write a valid IP address after /ip4/ or /ip6/") from None
            if f"ip{address.version}" != match["version"]:
                raise ValueError("write /ip4/ before IPv4 addresses and /ip6/ before IPv6 addresses")
            if self.use != "listen" and address.is_unspecified:
                raise ValueError("write an address that others can dial: this one means every own interface")
        if self.use != "listen" and int(match["port"]) == 0:
            raise ValueError("write the port that others dial: 0 lets the system choose")
        if self.use == "listen" and match["dns"] is not None:
            raise ValueError("listen on an IP address: a name may resolve to another interface")
        if (match["peer"] is not None) != (self.use == "dial"):
            raise ValueError(
                "end the address with /p2p/<peer id>" if self.use == "dial" else "leave out /p2p/<peer id>"
            )
        return str(value)

    @property
    def example(self) -> str:
        """An address of the form wanted."""
        peer = "/p2p/16Uiu2HA..." if self.use == "dial" else ""
        return ("/ip4/0.0.0.0/tcp/4001" if self.use == "listen" else "/ip4/203.0.113.7/tcp/4001") + peer
