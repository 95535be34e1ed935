"""How many requests of ours a node takes at once, found out from what it refuses: the rest wait here, not there.

A node bounds what one payer may have under way and does not say where. So the bound is learnt: a refusal lowers it to
what was accepted, completions raise it again (additive increase, multiplicative decrease). Pure but for one event.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

FIRST_LIMIT = 32.0
MOST = 128.0
RAISE_BY = 0.25
MAX_LANES = 1_024


@dataclass
class Lane:
    """One node: what is under way there, and what of it was accepted."""

    limit: float = FIRST_LIMIT
    under_way: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)

    @property
    def is_full(self) -> bool:
        """Whether one more would be refused, as far as we know."""
        return len(self.under_way) >= max(1, int(self.limit))


class Lanes:
    """All nodes that were asked lately."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[bytes, Lane] = OrderedDict()
        self._freed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Lanes({len(self._lanes)} nodes)"

    def is_full(self, node: bytes) -> bool:
        """Whether a request would only be refused there."""
        lane = self._lanes.get(node)
        return lane is not None and lane.is_full

    def holds(self, node: bytes) -> bool:
        """Whether a request of ours is under way there: then it is worth waiting for its end."""
        lane = self._lanes.get(node)
        return lane is not None and bool(lane.under_way)

    def enter(self, node: bytes, run: int) -> None:
        """A request is about to be sent."""
        lane = self._lanes.setdefault(node, Lane())
        self._lanes.move_to_end(node)
        lane.under_way.add(run)
        if len(self._lanes) > MAX_LANES:
            idle = next((name for name, held in self._lanes.items() if not held.under_way), None)
            if idle is not None:
                del self._lanes[idle]

    def accepted(self, node: bytes, run: int) -> None:
        """The node took it."""
        self._lanes[node].accepted.add(run)

    def refused(self, node: bytes) -> None:
        """The node was full: it takes no more at once than what it had accepted then."""
        lane = self._lanes[node]
        lane.limit = max(1.0, len(lane.accepted) if lane.accepted else min(lane.limit, len(lane.under_way)) / 2)

    def leave(self, node: bytes, run: int, *, completed: bool) -> None:
        """It is over there, its closing voucher included."""
        lane = self._lanes[node]
        lane.under_way.discard(run)
        lane.accepted.discard(run)
        if completed:
            lane.limit = min(MOST, lane.limit + RAISE_BY)
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    async def room(self, timeout_s: float) -> None:
        """Wait until something ended, or for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._freed.wait()
        except TimeoutError:
            return
