"""Connections that have not finished their handshake, bounded an address and in all. Pure.

Full does not mean closed: the oldest gives way, because an honest handshake takes milliseconds while one that idles is
most likely never meant to end. So an attacker who shares an address with honest peers cannot lock them out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class HalfOpen(Generic[K]):
    """The table; `K` names a connection."""

    def __init__(self, per_address: int = 32, in_all: int = 256) -> None:
        self._per_address = per_address
        self._in_all = in_all
        self._address: OrderedDict[K, str] = OrderedDict()
        self._count: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._address)

    def enter(self, connection: K, address: str) -> K | None:
        """Add a connection; returns one to abort where a bound was reached."""
        evicted = None
        if self._count.get(address, 0) >= self._per_address:
            evicted = next(known for known, place in self._address.items() if place == address)
        elif len(self._address) >= self._in_all:
            evicted = next(iter(self._address))
        if evicted is not None:
            self.leave(evicted)
        self._address[connection] = address
        self._count[address] = self._count.get(address, 0) + 1
        return evicted

    def leave(self, connection: K) -> None:
        """Forget a connection: it finished its handshake or is gone. Safe to repeat."""
        address = self._address.pop(connection, None)
        if address is not None:
            self._count[address] -= 1
            if not self._count[address]:
                del self._count[address]
