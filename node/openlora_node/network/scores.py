"""What peers did wrong, and who is kept out for it. Pure: the caller brings the time.

A fault costs the peer that *sent* the bytes, never the one that they name: a forged advert must not hurt its victim.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import Enum

HALF_LIFE_S = 600.0
DENY_AT = 100.0
DENY_S = 3600.0
MAX_PEERS = 4096


class Fault(Enum):
    """A kind of misbehaviour and what it costs."""

    FORGED = 50.0
    MALFORMED = 20.0
    OVERSIZED = 20.0
    FUTURE = 10.0
    """Perhaps this host's own clock. Worth what no other fault is: an enum takes equal values for one member."""
    LIED = 34.0
    """Said it had something, or would do something, and did not."""
    REPLAYED = 2.0
    STALE = 1.0
    FLOOD = 5.0
    STALLED = 5.0


class Scores:
    """Faults decay by half in ten minutes; a hundred points at once keep a peer out for an hour."""

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._max_peers = max_peers
        self._points: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._denied: OrderedDict[str, float] = OrderedDict()

    def charge(self, peer: str, fault: Fault, now: float) -> bool:
        """Note a fault of `peer`. True when this one closed the door on it."""
        points = self.points(peer, now) + fault.value
        self._points[peer] = (points, now)
        self._points.move_to_end(peer)
        if len(self._points) > self._max_peers:
            self._points.popitem(last=False)
        if points < DENY_AT or self.is_denied(peer, now):
            return False
        self.deny(peer, now)
        return True

    def points(self, peer: str, now: float) -> float:
        """Fault points left after decay."""
        points, since = self._points.get(peer, (0.0, now))
        return points * math.exp2(-max(0.0, now - since) / HALF_LIFE_S)

    def deny(self, peer: str, now: float, seconds: float = DENY_S) -> None:
        """Keep `peer` out for a while."""
        self._denied[peer] = now + seconds
        self._denied.move_to_end(peer)
        if len(self._denied) > self._max_peers:
            self._denied.popitem(last=False)

    def is_denied(self, peer: str, now: float) -> bool:
        """Whether `peer` is kept out."""
        until = self._denied.get(peer)
        if until is not None and until <= now:
            del self._denied[peer]
            self._points.pop(peer, None)
            return False
        return until is not None
