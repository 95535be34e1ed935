"""Keeps slots at two relays while this host cannot be reached directly: finds relays, reserves, renews, replaces."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import trio
from libp2p.stream_muxer.yamux.yamux import Yamux

from ..protocol.errors import OpenLoraError
from .host import Host
from .relay import RelayClient, Reservation
from .relay_hop import HOP_ID

WANTED = 2
RENEW_AT = 0.75
"""Of a reservation's life."""
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0
REFUSED_S = 120.0
"""A relay that refused or broke is left alone so long."""
MAX_TRIED = 8

logger = logging.getLogger(__name__)

RelayFinder = Callable[[], AsyncIterator[tuple[str, tuple[str, ...]]]]
"""Peers that may be relays, with addresses, nearest at hand first."""


class RelaySlots:
    """The slots. `want` says whether any are wanted; `changed` is told when the addresses through them change."""

    def __init__(
        self, host: Host, client: RelayClient, find: RelayFinder, changed: Callable[[], None], wanted: int = WANTED
    ) -> None:
        self._host = host
        self._client = client
        self._find = find
        self._changed = changed
        self._wanted = wanted
        self._slots: dict[str, Reservation] = {}
        self._avoid: dict[str, float] = {}
        self._active = False
        self._wake = trio.Event()
        self._scope: trio.CancelScope | None = None

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Slots held."""
        return tuple(self._slots.values())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Circuit addresses of this host, without its peer id."""
        return tuple(address for slot in self._slots.values() for address in slot.addresses)

    def holds(self, relay: str) -> bool:
        """Whether circuits through this relay are expected."""
        return relay in self._slots

    def want(self, active: bool) -> None:
        """Whether slots are wanted from now on. Those held run out by themselves when not."""
        if active != self._active:
            self._active = active
            self._wake.set()
            if not active and self._scope is not None:
                self._scope.cancel()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake = trio.Event()
            if not self._active:
                await self._wake.wait()
                continue
            with trio.CancelScope() as self._scope:
                await self._keep()
            if self._slots:
                self._slots.clear()
                self._changed()

    async def _keep(self) -> None:
        """Fill the slots, and again whenever one is lost. Until cancelled."""
        pause = FIRST_RETRY_S
        async with trio.open_nursery() as nursery:
            while True:
                before = len(self._slots)
                if before < self._wanted:
                    await self._fill(nursery)
                found = len(self._slots) > before
                full = len(self._slots) >= self._wanted
                pause = FIRST_RETRY_S if found else min(2 * pause, LONGEST_RETRY_S)
                self._wake = trio.Event()
                with trio.move_on_after(float("inf") if full else pause * (0.75 + random.random() / 2)):  # noqa: S311 - apart
                    await self._wake.wait()

    async def _fill(self, nursery: trio.Nursery) -> None:
        tried = 0
        ips = {self._host.connections.ip_of(relay) for relay in self._slots}
        spare: list[str] = []
        async for relay, addresses in self._find():
            if tried >= MAX_TRIED or len(self._slots) >= self._wanted:
                return
            if relay in self._slots or self._avoid.get(relay, 0.0) > trio.current_time() or relay == self._host.id:
                continue
            tried += 1
            if not await self._reach(relay, addresses):
                continue
            if self._host.connections.ip_of(relay) in ips:  # one machine's end should cost one slot only
                spare.append(relay)
            elif await self._take(relay, nursery):
                ips.add(self._host.connections.ip_of(relay))
        for relay in spare:
            if len(self._slots) < self._wanted:
                await self._take(relay, nursery)

    async def _reach(self, relay: str, addresses: tuple[str, ...]) -> bool:
        """A direct connection to a peer that speaks as a relay."""
        try:
            if not self._host.connections.is_direct(relay):
                await self._host.connect(relay, addresses)
            with trio.move_on_after(3):
                while not self._host.connections.speaks(relay, HOP_ID):  # noqa: ASYNC110 - identify has no event
                    await trio.sleep(0.05)
        except OpenLoraError as error:
            logger.debug("relay %s: %s", relay, error)
        if self._host.connections.is_direct(relay) and self._host.connections.speaks(relay, HOP_ID):
            return True
        self._shun(relay)
        return False

    async def _take(self, relay: str, nursery: trio.Nursery) -> bool:
        try:
            reservation = await self._client.reserve(relay)
        except OpenLoraError as error:
            logger.debug("relay %s: %s", relay, error)
            self._shun(relay)
            return False
        self._slots[relay] = reservation
        self._changed()
        nursery.start_soon(self._hold, relay)
        return True

    async def _hold(self, relay: str) -> None:
        """Renew one slot for as long as its relay's connection lives."""
        try:
            while True:
                connection = self._host.connections.direct(relay)
                if connection is None:
                    return
                left = (self._slots[relay].expires - time.time()) * RENEW_AT
                with trio.move_on_after(max(1.0, left)) as renewal:
                    await cast(Yamux, connection.muxed_conn).event_closed.wait()
                if not renewal.cancelled_caught:
                    continue  # another connection may carry it on
                self._slots[relay] = await self._client.reserve(relay)
        except OpenLoraError as error:
            logger.info("relay %s is lost: %s", relay, error)
        finally:
            if self._slots.pop(relay, None) is not None:
                self._shun(relay)
                self._changed()
                self._wake.set()

    def _shun(self, relay: str) -> None:
        now = trio.current_time()
        self._avoid = {known: until for known, until in self._avoid.items() if until > now}
        self._avoid[relay] = now + REFUSED_S
