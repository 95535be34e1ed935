"""Which nodes may answer a request, as one asker sees them: adverts, filters, round trips and its own experience.

The decision itself is `routing`'s. What it needs of the network is fetched here, ahead of need where that is cheap,
and kept within bounds; a pick waits for the network a quarter of a second at most.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..protocol.errors import OpenLoraError
from ..protocol.ids import ZERO32
from .adverts import Advert
from .filters import AdapterFilter
from .identity import Peer
from .rendezvous import adapter_key, affinity, node_key
from .routing import WORST_SUCCESS, Ask, Candidate, Dice, Spread, alternatives, choose
from .standing import Outcome, Standing

LOOK_EVERY_S = 0.5
"""Between looks at the table of adverts; a large one is looked at more rarely."""
NODES_A_SECOND = 20_000
FILTER_WAIT_S = 0.25
FILTER_RETRY_S = 30.0
FETCHES_AT_ONCE = 4
SMALL_NETWORK = 64
"""With so few nodes all filters are kept at hand, else those of nodes that are asked."""
MAX_FILTERS = 1024
MAX_RANKED = 64
"""Nodes of an adapter's order that are kept."""
MAX_ORDERS = 1024
MAX_SPREADS = 8192
MAX_BASES = 64

MAX_HOMES_JUDGED = 16
MAX_JUDGED = 256
"""Of many nodes that would do, so many drawn at random are looked at."""

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Seen:
    """A live node: its newest advert, and seconds for a ping and its answer if it is connected."""

    advert: Advert
    rtt_s: float | None


class CandidateNetwork(Protocol):
    """What is used of the Network."""

    async def seen(self, base: bytes) -> tuple[Seen, ...]:
        """Live nodes of a base model."""
        ...

    async def connect_node(self, node: bytes) -> Peer:
        """A connection to a node."""
        ...

    async def filter_of(self, node: bytes) -> AdapterFilter | None:
        """A connected node's adapters."""
        ...


@dataclass(frozen=True)
class _Look:
    """The live nodes of one base, and each one's key for rendezvous. `version` stands for the set of nodes."""

    at: float
    version: int
    nodes: dict[bytes, Seen]
    keys: dict[bytes, int]


@dataclass(frozen=True)
class _Filter:
    digest: bytes
    adapters: AdapterFilter | None


class Candidates:
    """Picks nodes for requests and learns from what becomes of them. Used in one asyncio loop."""

    def __init__(
        self,
        network: CandidateNetwork,
        *,
        own: bytes | None = None,
        allows: Callable[[bytes], bool] = lambda _node: True,
        charge: Callable[[bytes, Ask], int] = lambda _node, _ask: 0,
        clock: Callable[[], float] = time.time,
        dice: Dice = random.randrange,
    ) -> None:
        """`own`: this node's id, never picked; `allows`: funded, with access; `charge`: what it would charge once."""
        self.standing = Standing()
        self._network = network
        self._own = own
        self._allows = allows
        self._charge = charge
        self._clock = clock
        self._dice = dice
        self._looks: OrderedDict[bytes, _Look] = OrderedDict()
        self._filters: OrderedDict[bytes, _Filter] = OrderedDict()
        self._tried_filters: OrderedDict[bytes, float] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._versions = itertools.count()
        self._spreads: OrderedDict[int, Spread] = OrderedDict()
        self._hints: OrderedDict[int, tuple[bytes, ...]] = OrderedDict()
        self._asked: OrderedDict[bytes, tuple[int, Ask, bool]] = OrderedDict()
        self._fetching: dict[bytes, asyncio.Task[None]] = {}
        self._looking: dict[bytes, asyncio.Task[_Look]] = {}
        self._fetches = asyncio.Semaphore(FETCHES_AT_ONCE)

    def __repr__(self) -> str:
        return f"Candidates({len(self._filters)} filters, {len(self.standing)} nodes asked)"

    async def live(self, base: bytes) -> tuple[Advert, ...]:
        """The newest adverts of live nodes of a base model, half a second old at most."""
        return tuple(seen.advert for seen in (await self._look(base)).nodes.values())

    async def pick(self, base: bytes, ask: Ask, tried: Collection[bytes] = ()) -> bytes | None:
        """The node to ask next, none of `tried`; None when nobody fits. Each pick wants one `report`."""
        look = await self._look(base)
        key = adapter_key(base, ask.adapters)
        now = self._clock()
        for homes in self._widening(key, ask, look, tried):
            usable = [node for node in homes if self._is_usable(node, now)]
            if ask.adapters and usable:
                await self._want_filters(usable, look)
            chosen = self._choose(ask, usable, self._holders(ask, look, {*homes, *tried}), look, now)
            if chosen is not None:
                break
        else:  # those that are full or fail a lot are better than nobody
            rest = [node for node in look.nodes if node not in tried]
            chosen = self._choose(ask, self._some(rest, MAX_JUDGED), (), look, now)
        if chosen is None:
            return None
        self.standing.picked(chosen, now)
        _remember(self._asked, chosen, (key, ask, not tried), MAX_SPREADS)
        return chosen

    def report(
        self,
        node: bytes,
        outcome: Outcome,
        *,
        base: bytes | None = None,
        ask: Ask | None = None,
        retry_after_s: float = 1.0,
        others: Sequence[bytes] = (),
    ) -> None:
        """What became of a pick: with `base` and `ask`, of that one; `others` are whom a BUSY node named."""
        now = self._clock()
        key, last, first = self._asked.get(node, (0, Ask(), False))
        if base is not None and ask is not None:
            key, last = adapter_key(base, ask.adapters), ask
        if outcome is Outcome.NO_ADAPTER and last.adapters:
            outcome = Outcome.BROKEN_PROMISE if self._missing(node, last) == 0 else outcome
            self.standing.lacked(node, last.adapters, now)
        self.standing.report(node, outcome, now, retry_after_s)
        if outcome is Outcome.BUSY and key:
            nodes = max((len(look.nodes) for look in self._looks.values()), default=1)
            _remember(self._spreads, key, self._spreads.get(key, Spread()).busy(max(1, nodes)), MAX_SPREADS)
            _remember(self._hints, key, tuple(others[:8]), MAX_SPREADS)
        elif outcome is Outcome.COMPLETED and first and key in self._spreads:
            self._spreads[key] = self._spreads[key].accepted()
            self._hints.pop(key, None)

    def alternatives(self, base: bytes, adapters: Collection[bytes], most: int = 8) -> tuple[bytes, ...]:
        """Whom this node names when it is full, by what was seen last; never waits."""
        look = self._looks.get(base)
        if look is None or look.at + LOOK_EVERY_S < self._clock():
            self._start_look(base)
        if look is None or self._own is None:
            return ()
        now = self._clock()
        ranked = self._ranked(adapter_key(base, adapters), look, MAX_RANKED)
        busy = {node for node in ranked if self.standing.is_busy(node, now)}
        return alternatives(ranked, self._own, busy, most)

    async def close(self) -> None:
        """Stop fetching. Safe to repeat."""
        tasks = [*self._fetching.values(), *self._looking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def candidate(self, node: bytes, ask: Ask, seen: Seen, now: float) -> Candidate:
        """A node as routing judges it."""
        advert = seen.advert.value
        return Candidate(
            node=node,
            input_rate=advert.input_rate,
            output_rate=advert.output_rate,
            charge=self._charge(node, ask),
            max_context=advert.max_context or 1 << 30,
            tokens_per_second=advert.tokens_per_second,
            queue_depth=advert.queue_depth,
            advert_age_s=max(0.0, now - advert.issued_at),
            in_flight=self.standing.in_flight(node, now),
            missing=self._missing(node, ask),
            rtt_s=seen.rtt_s,
            success=self.standing.success(node, now),
            allowed=node != self._own and self._allows(node) and not self._lacks(node, ask, now),
        )

    def _widening(self, key: int, ask: Ask, look: _Look, tried: Collection[bytes]) -> Iterator[list[bytes]]:
        """Homes to choose from: the spread, then twice and four times as many, then everybody."""
        if ask.adapters:
            homes = self._spreads.get(key, Spread()).homes
            ranked = self._ranked(key, look, 4 * homes)
            for width in (homes, 2 * homes, 4 * homes):
                names = dict.fromkeys([*self._some(ranked[:width], MAX_HOMES_JUDGED), *self._hints.get(key, ())])
                yield [node for node in names if node in look.nodes and node not in tried]
                if width >= len(ranked):
                    return
        rest = [node for node in look.nodes if node not in tried]
        yield self._some(rest, MAX_HOMES_JUDGED)
        if len(rest) > MAX_HOMES_JUDGED:
            yield self._some(rest, MAX_JUDGED)

    def _is_usable(self, node: bytes, now: float) -> bool:
        return not self.standing.is_busy(node, now) and self.standing.success(node, now) >= WORST_SUCCESS

    def _some(self, nodes: Collection[bytes], most: int) -> list[bytes]:
        """All of them, or as many as are worth looking at, drawn at random."""
        pool = list(nodes)
        for place in range(min(most, len(pool)) if len(pool) > most else 0):
            other = place + self._dice(len(pool) - place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:most]

    def _choose(
        self, ask: Ask, homes: Sequence[bytes], holders: Sequence[bytes], look: _Look, now: float
    ) -> bytes | None:
        views = [[self.candidate(node, ask, look.nodes[node], now) for node in group] for group in (homes, holders)]
        chosen = choose(ask, views[0], views[1], self._dice)
        return chosen.node if chosen else None

    def _missing(self, node: bytes, ask: Ask) -> int:
        """Adapters that the node does not hold, as far as its filter tells."""
        known = self._filters.get(node)
        held = known.adapters if known else None
        return sum(held is None or adapter not in held for adapter in ask.adapters)

    def _lacks(self, node: bytes, ask: Ask, now: float) -> bool:
        """Whether the node itself said a moment ago that it does not find an adapter of these."""
        return any(self.standing.lacks(node, adapter, now) for adapter in ask.adapters)

    def _holders(self, ask: Ask, look: _Look, without: Collection[bytes]) -> list[bytes]:
        """Other nodes whose filters hold all adapters; as many as routing draws from with profit."""
        if not ask.adapters:
            return []
        now, found = self._clock(), []
        for node in self._filters:
            if node in look.nodes and node not in without and self._missing(node, ask) == 0:
                if self._is_usable(node, now):
                    found.append(node)
                if len(found) >= 2 * FETCHES_AT_ONCE:
                    break
        return found

    def _ranked(self, key: int, look: _Look, most: int) -> list[bytes]:
        """The first nodes of an adapter's order."""
        most = max(most, MAX_RANKED)
        ranked = self._orders.get((key, look.version))
        if ranked is None or len(ranked) < min(most, len(look.nodes)):
            ranked = heapq.nlargest(most, look.keys, key=lambda node: affinity(key, look.keys[node]))
            _remember(self._orders, (key, look.version), ranked, MAX_ORDERS)
        return ranked

    # what is fetched

    async def _look(self, base: bytes) -> _Look:
        look = self._looks.get(base)
        age = self._clock() - look.at if look else 0.0
        if look is not None and 0 <= age <= max(LOOK_EVERY_S, len(look.nodes) / NODES_A_SECOND):
            return look
        try:
            return await asyncio.shield(self._start_look(base))
        except OpenLoraError:
            if look is None:
                raise
            return look  # the network is starting again: what was seen last will do

    def _start_look(self, base: bytes) -> asyncio.Task[_Look]:
        task = self._looking.get(base)
        if task is None:
            task = self._looking[base] = asyncio.create_task(self._look_now(base), name="candidates: reading adverts")
            task.add_done_callback(lambda done: self._looked(base, done))
        return task

    def _looked(self, base: bytes, task: asyncio.Task[_Look]) -> None:
        self._looking.pop(base, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("reading adverts: %s", error)

    async def _look_now(self, base: bytes) -> _Look:
        nodes = {each.advert.node: each for each in await self._network.seen(base)}
        old = self._looks.get(base)
        if old is not None and old.nodes.keys() == nodes.keys():
            look = _Look(self._clock(), old.version, nodes, old.keys)
        else:
            look = _Look(self._clock(), next(self._versions), nodes, {node: node_key(node) for node in nodes})
        _remember(self._looks, base, look, MAX_BASES)
        if len(nodes) <= SMALL_NETWORK:
            for node in nodes:
                self._want_filter(node, look)
        return look

    async def _want_filters(self, nodes: Sequence[bytes], look: _Look) -> None:
        """Fetch what is missing or old; wait a moment for nodes of which nothing is known."""
        for node in nodes:
            self._want_filter(node, look)
        unknown = [self._fetching[node] for node in nodes if node in self._fetching and node not in self._filters]
        if unknown:
            await asyncio.wait(unknown, timeout=FILTER_WAIT_S)

    def _want_filter(self, node: bytes, look: _Look) -> None:
        digest = look.nodes[node].advert.value.filter_digest
        known = self._filters.get(node)
        if (known is not None and known.digest == digest) or node in self._fetching or node == self._own:
            return
        if digest == ZERO32:
            _remember(self._filters, node, _Filter(digest, None), MAX_FILTERS)
            return
        now = self._clock()
        if now - self._tried_filters.get(node, -FILTER_RETRY_S) < FILTER_RETRY_S:
            return
        _remember(self._tried_filters, node, now, MAX_FILTERS)
        task = asyncio.create_task(self._fetch_filter(node, digest), name=f"candidates: filter of {node.hex()[:8]}")
        self._fetching[node] = task
        task.add_done_callback(lambda _: self._fetching.pop(node, None))

    async def _fetch_filter(self, node: bytes, digest: bytes) -> None:
        async with self._fetches:
            try:
                await self._network.connect_node(node)
                adapters = await self._network.filter_of(node)
            except OpenLoraError as error:
                logger.debug("filter of node %s: %s", node.hex()[:8], error)
                return
        _remember(self._filters, node, _Filter(digest, adapters), MAX_FILTERS)


def _remember(table: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put, and forget what was put longest ago."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
