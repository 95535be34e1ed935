"""Reachability of this host: asks peers to dial back, and while they cannot, keeps relays and punches holes.

Lives in the network's thread. Decides what this host tells others of its addresses, whether it holds a part of the
directory, and whether it relays; the decisions themselves are `reach_policy`'s.
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import trio
from libp2p.host.observed_addr_manager import ObservedAddrManager

from ..protocol.errors import OpenLoraError
from ..protocol.structs import Reach
from .advertising import Advertising
from .adverts import OwnState
from .directory import Directory
from .holepunch import HolePuncher
from .host import Host
from .identity import Peer
from .nat import AUTONAT_ID, DialBack
from .nat_mapping import Mappings
from .nat_observed import Observed
from .reach_addresses import Scope, claims, is_circuit, scope_of, seen_from, tcp_address
from .reach_policy import MAX_ASKED, RECHECK_S, Verdict, Vote, choose, decide, next_look_s, own_addresses
from .relay import RelayClient
from .relay_hop import HOP_ID, HopService
from .relay_slots import WANTED, RelaySlots
from .relay_table import RelayLimits
from .stream import BROKEN

RELAY_KEY = hashlib.sha256(b"/openlora/relay/1").digest()
"""Under this key relays are found in the directory."""
PROVIDE_EVERY_S = 6 * 3600.0
PROVIDE_RETRY_S = 60.0
LOOK_EVERY_S = 5.0
"""Between looks at the own interfaces."""
SETTLE_S = 0.5
"""After a change, for more changes to come in before peers are asked."""
RESTART_S = 5.0
PACE_S = 3.0
"""Least time between two rounds that gave a verdict."""
PROBES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that nothing is sent to: the route to them names the interface used."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReachOptions:
    """How this host is to be reached. Times in seconds."""

    relay: Literal["off", "use", "serve"] = "use"
    announce: tuple[str, ...] = ()
    """Addresses that the operator names; empty: those that peers confirm."""
    wanted: bool = True
    """Whether others must reach this host: a gateway only dials."""
    recheck: float = RECHECK_S
    slots: int = WANTED
    limits: RelayLimits = field(default_factory=RelayLimits)


@dataclass(frozen=True)
class ReachState:
    """How this host is reached, at one moment."""

    reach: Reach
    verdict: Verdict
    votes: tuple[Vote, ...]
    observed: tuple[str, ...]
    """Own IPs as peers see them."""
    interfaces: tuple[str, ...]
    """Own IPs as this machine sees them."""
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    claimed: tuple[str, ...]
    told: tuple[str, ...]
    """Addresses that others are told, without peer id."""
    relays: tuple[str, ...]
    """Peer ids of the relays that hold a slot for this host."""
    relay: str
    serving: int
    """Slots given to others."""
    punched: int
    unpunched: int
    checked_at: int
    """Unix seconds of the last round of dial-backs; 0 before the first."""


class Reachability:
    """The state and the tasks that keep it true. Made by `open_reach`."""

    def __init__(
        self, host: Host, options: ReachOptions, advertising: Advertising | None, directory: Directory
    ) -> None:
        self._host = host
        self._options = options
        self._advertising = advertising
        self._directory = directory
        self._dice = random.Random()  # noqa: S311 - whom to ask is no secret
        self._changed = trio.Event()
        self._decided = trio.Event()
        self._votes: tuple[Vote, ...] = ()
        self._verdict = Verdict(None)
        self._interfaces = interface_ips()
        self._checked_at = 0
        self._watchers: list[Callable[[], None]] = []
        self._observed = Observed(self._wake)
        host.inner._observed_addr_manager = cast(ObservedAddrManager, self._observed)
        host.on_connected(self._greet)
        self._dial_back = DialBack(host)
        self.puncher: HolePuncher | None = None
        self.hop: HopService | None = None
        self._slots: RelaySlots | None = None
        if options.relay != "off":
            self.puncher = HolePuncher(host, self._external, Mappings(host, self._observed).learn)
            client = RelayClient(host, self._takes, self.puncher.start)
            self._slots = RelaySlots(host, client, self._find_relays, self._tell, options.slots)
        if options.relay == "serve":
            self.hop = HopService(host, options.limits, lambda: self._verdict.is_direct is not False)

    @property
    def reach(self) -> Reach:
        """How peers reach this host."""
        if self._verdict.is_direct:
            return Reach.DIRECT
        return Reach.RELAYED if self._slots is not None and self._slots.reservations else Reach.UNKNOWN

    @property
    def addresses(self) -> tuple[str, ...]:
        """What others are told, without the peer id."""
        circuits = self._slots.addresses if self._slots is not None else ()
        told = own_addresses(self._verdict, self._options.announce, circuits)
        return told or (self._claims() if self._verdict.is_direct is None else ())

    def state(self) -> ReachState:
        """Everything that is known, for a report."""
        return ReachState(
            reach=self.reach,
            verdict=self._verdict,
            votes=self._votes,
            observed=self._observed.ips(),
            interfaces=self._interfaces,
            listen=self._host.addresses(),
            announce=self._options.announce,
            claimed=self._claims(),
            told=self.addresses,
            relays=tuple(slot.relay for slot in self._slots.reservations) if self._slots is not None else (),
            relay=self._options.relay,
            serving=self.hop.table.reservations if self.hop is not None else 0,
            punched=self.puncher.succeeded if self.puncher is not None else 0,
            unpunched=self.puncher.failed if self.puncher is not None else 0,
            checked_at=self._checked_at,
        )

    def dress(self, state: OwnState) -> OwnState:
        """A node's word on itself with what is known here of how to reach it."""
        return replace(state, reach=self.reach, addresses=self.addresses)

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher`, in the network's thread, when reach or addresses change."""
        self._watchers.append(watcher)

    async def decided(self) -> None:
        """Wait for the first round of dial-backs with a verdict."""
        await self._decided.wait()

    async def settled(self) -> None:
        """Wait for a verdict that enough peers spoke for."""
        while not self._verdict.is_settled:
            self._decided = trio.Event()
            await self._decided.wait()

    def look_now(self) -> None:
        """Ask peers without waiting for the next time."""
        self._wake()

    async def run(self) -> None:
        """Ask for dial-backs, regularly and on change. Until cancelled."""
        pause = 0.0
        self._tell()
        while True:
            self._changed = trio.Event()
            votes = await self._round()
            verdict = decide(votes)
            self._votes = votes or self._votes
            if verdict.is_direct is not None:
                await self._settle(verdict)
            pause = next_look_s(verdict, pause, self._options.recheck)
            with trio.move_on_after(pause) as idle:
                await self._changed.wait()
            if not idle.cancelled_caught:
                pause = 0.0
                await trio.sleep(SETTLE_S if verdict.is_direct is None else PACE_S)

    async def watch(self) -> None:
        """Notice own interfaces that come and go. Until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            found = interface_ips()
            if found != self._interfaces:
                self._interfaces = found
                self._wake()

    async def provide(self) -> None:
        """Be found as a relay. Until cancelled."""
        while True:
            confirmed = False
            if self._verdict.is_direct and not self._directory.degraded:
                confirmed = await self._directory.provide(RELAY_KEY)
            await trio.sleep(PROVIDE_EVERY_S if confirmed else PROVIDE_RETRY_S if self._verdict.is_direct else 2.0)

    async def _round(self) -> tuple[Vote, ...]:
        """Ask peers, all at once, and collect what they say."""
        peers = [
            (p.id, self._host.connections.ip_of(p.id))
            for p in self._host.peers()
            if self._host.connections.speaks(p.id, AUTONAT_ID)
        ]
        chosen = choose([(peer, ip) for peer, ip in peers if ip is not None], MAX_ASKED, self._dice)
        votes: list[Vote] = []

        async def ask(peer: str) -> None:
            connection = self._host.connections.direct(peer)
            observed = self._observed.by(connection) if connection is not None else ""
            votes.append(await self._dial_back.ask(peer, seen_from(observed, self._claims()), observed))

        async with trio.open_nursery() as nursery:
            for peer in chosen:
                nursery.start_soon(ask, peer)
        self._checked_at = int(time.time()) if votes else self._checked_at
        return tuple(votes)

    async def _settle(self, verdict: Verdict) -> None:
        before = self._verdict.is_direct
        self._verdict = verdict
        if verdict.is_direct is not before:
            logger.info("%s of %s peers could dial back", verdict.reached, verdict.counted)
            await self._directory.set_serving(bool(verdict.is_direct))
        if self._slots is not None:
            self._slots.want(self._options.wanted and not verdict.is_direct)
        self._tell()
        self._decided.set()

    def _tell(self) -> None:
        """What others are told follows what is known."""
        self._host.published = self.addresses
        for watcher in self._watchers:
            watcher()

    def _wake(self) -> None:
        self._changed.set()

    async def _greet(self, _: Peer) -> None:
        """One more peer to ask, while there are too few."""
        if not self._verdict.is_settled:
            await trio.sleep(SETTLE_S)  # identify has told by then
            self._wake()

    def _takes(self, relay: str) -> bool:
        return self._slots is not None and self._slots.holds(relay)

    def _claims(self) -> tuple[str, ...]:
        return claims(self._observed.ips(), self._host.addresses(), self._options.announce, self._interfaces)

    def _external(self) -> tuple[str, ...]:
        """Where a NAT may have put the listener's port: as seen, and as it stands, for most NATs keep it."""
        ips = self._observed.ips()
        widest = max((scope_of(ip) for ip in ips), default=Scope.LOOPBACK)
        guessed = [tcp_address(ip, port) for ip in ips if scope_of(ip) is widest for port in sorted(self._host.ports())]
        return tuple(dict.fromkeys([*self._observed.mappings(), *guessed]))

    async def _find_relays(self) -> AsyncIterator[tuple[str, tuple[str, ...]]]:
        """Peers that may relay: those connected, those of the directory, then nodes that are reached directly."""
        connected = [peer.id for peer in self._host.peers() if self._host.connections.speaks(peer.id, HOP_ID)]
        self._dice.shuffle(connected)
        for peer in connected:
            if self._host.connections.is_direct(peer):
                yield peer, ()
        for peer, addresses in await self._directory.providers(RELAY_KEY):
            yield peer, tuple(a for a in addresses if not is_circuit(a))
        table = self._advertising.table if self._advertising is not None else ()
        nodes = [advert for advert in table if advert.value.reach == Reach.DIRECT]
        self._dice.shuffle(nodes)
        for advert in nodes[:MAX_ASKED]:
            yield advert.peer, tuple(a for a in advert.value.addresses if not is_circuit(a))


@asynccontextmanager
async def open_reach(
    host: Host, options: ReachOptions, advertising: Advertising | None, directory: Directory
) -> AsyncIterator[Reachability]:
    """Reachability on a running host."""
    reachability = Reachability(host, options, advertising, directory)
    async with trio.open_nursery() as nursery:
        tasks = [reachability.run, reachability.watch]
        if reachability._slots is not None:
            tasks.append(reachability._slots.run)
        if reachability.hop is not None:
            tasks += [reachability.hop.prune, reachability.provide]
        for task in tasks:
            nursery.start_soon(_forever, task)
        yield reachability
        nursery.cancel_scope.cancel()


def interface_ips() -> tuple[str, ...]:
    """IPs of the interfaces that lead out of this machine, by its routes. Sends nothing."""
    found = []
    for family, probe in PROBES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.connect((probe, 9))
                found.append(str(sender.getsockname()[0]))
        except OSError:
            continue
    return tuple(ip for ip in found if scope_of(ip) is not Scope.LOOPBACK)


async def _forever(task: Callable[[], Awaitable[None]]) -> None:
    """A fault in here must not take the host down: it is logged, and the task begins again."""
    while True:
        try:
            await task()
        except (OpenLoraError, *BROKEN) as error:
            logger.debug("%s: %s", task.__qualname__, error)
        except Exception:
            logger.exception("%s failed", task.__qualname__)
        await trio.sleep(RESTART_S)
