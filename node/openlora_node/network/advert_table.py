"""Which nodes are known, by their newest adverts. Bounded in all and against floods by one key. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from .adverts import Advert

MAX_NODES = 20_000
"""As many as one `adverts?` can list."""


class Outcome(Enum):
    """What became of an offered advert."""

    NEW = "new"
    KNOWN = "known"
    """The very bytes that are held."""
    REPLAYED = "replayed"
    """An older or equal seq with other bytes."""
    FULL = "full"


class AdvertTable:
    """The newest advert of each node until it expires. An OFFLINE advert stays as well: it keeps older ones out."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._max_nodes = max_nodes
        self._adverts: dict[bytes, Advert] = {}
        self._by_base: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._adverts)

    def __iter__(self) -> Iterator[Advert]:
        return iter(list(self._adverts.values()))

    def get(self, node: bytes) -> Advert | None:
        """The newest advert of a node."""
        return self._adverts.get(node)

    def holds(self, packed: bytes, node: bytes) -> bool:
        """Whether these very bytes are the newest of `node`."""
        known = self._adverts.get(node)
        return known is not None and known.packed == packed

    def offer(self, advert: Advert, now: float) -> Outcome:
        """Take a verified advert if it is news. A full table first forgets what expired, then refuses."""
        known = self._adverts.get(advert.node)
        if known is not None:
            if known.packed == advert.packed:
                return Outcome.KNOWN
            if advert.value.seq <= known.value.seq:
                return Outcome.REPLAYED
            self._forget(advert.node)
        elif len(self._adverts) >= self._max_nodes:
            self.expire(now)
            if len(self._adverts) >= self._max_nodes:
                return Outcome.FULL
        self._adverts[advert.node] = advert
        for base in advert.value.base_models:
            self._by_base.setdefault(base, set()).add(advert.node)
        return Outcome.NEW

    def expire(self, now: float) -> None:
        """Forget adverts whose time is over."""
        for node in [node for node, advert in self._adverts.items() if advert.value.expires_at <= now]:
            self._forget(node)

    def live(self, base: bytes, now: float) -> tuple[Advert, ...]:
        """Nodes that serve a base model now."""
        known = (self._adverts[node] for node in self._by_base.get(base, ()))
        return tuple(advert for advert in known if advert.is_live(now))

    def known(self) -> tuple[bytes, ...]:
        """Node id ‖ seq of all that is held: what an asker sends."""
        return tuple(node + advert.value.seq.to_bytes(8, "big") for node, advert in self._adverts.items())

    def newer_than(self, known: Iterable[bytes], now: float, limit: int) -> tuple[tuple[bytes, ...], bool]:
        """Packed adverts that an asker with `known` lacks, at most `limit`, and whether there are more."""
        theirs = {entry[:32]: int.from_bytes(entry[32:], "big") for entry in known}
        missing = [
            advert.packed
            for node, advert in self._adverts.items()
            if advert.value.expires_at > now and advert.value.seq > theirs.get(node, -1)
        ]
        return tuple(missing[:limit]), len(missing) > limit

    def _forget(self, node: bytes) -> None:
        for base in self._adverts.pop(node).value.base_models:
            nodes = self._by_base[base]
            nodes.discard(node)
            if not nodes:
                del self._by_base[base]
