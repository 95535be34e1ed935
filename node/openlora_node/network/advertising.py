"""Adverts in motion: this node's own go out, others' come in by gossip, by request and from each new connection.

Lives in the network's thread. What a peer sends is judged once, and what is wrong with it costs that peer.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import trio

from ..protocol.crypto import Signer
from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import ZERO32
from ..protocol.messages import (
    ADVERT,
    Adapters,
    AdvertMessage,
    Adverts,
    ErrorReply,
    Filter,
    GetAdapters,
    GetAdverts,
    GetFilter,
)
from ..protocol.structs import NodeState
from .advert_table import AdvertTable, Outcome
from .adverts import (
    DEBOUNCE_S,
    TTL_INTERVALS,
    Advert,
    AdvertRefused,
    KeyView,
    OwnState,
    debounce_s,
    interval_s,
    is_material,
    make_advert,
    peek,
    read_advert,
)
from .buckets import Allowance, Buckets
from .filters import AdapterFilter, filter_digest
from .gossip import Gossip, open_gossip
from .host import Host
from .identity import Peer
from .scores import Fault
from .stream import FramedStream

PAGE_ADVERTS = 1_500
"""2,000 of the largest would not fit a frame."""
PAGE_ADAPTERS = 8_192
MAX_PAGES = 20
MAX_FILTERS = 1_024
MAX_CHARGED = 4_096
CHARGED_ONCE = frozenset({Fault.FORGED, Fault.FUTURE, Fault.REPLAYED, Fault.STALE})
ANSWER_TIMEOUT_S = 10.0
IDLE_S = 60.0
FAREWELL_S = 0.3
QUESTIONS = Allowance(rate=1.0, burst=30.0)
"""Requests of one peer on its advert streams."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdvertOptions:
    """Which domain adverts are signed under, how often they go out, and, for a node, who signs them."""

    domain: Domain
    interval: float = 60.0
    debounce: float = DEBOUNCE_S
    reconcile: float = 30.0
    """Time between looks at what some connected peer knows: gossip loses messages."""
    node: bytes | None = None
    """Node id; None for a gateway, which only listens."""
    key: Signer | None = None


def topic_of(base: bytes) -> str:
    """The gossip topic of a base model's adverts."""
    return f"/openlora/adverts/1/{base.hex()}"


class Advertising:
    """The node's own advert, the table of others', their filters. Made by `open_advertising`."""

    def __init__(self, host: Host, options: AdvertOptions, keys: KeyView, clock: Callable[[], float]) -> None:
        self.table = AdvertTable()
        self._host = host
        self._options = options
        self._keys = keys
        self._clock = clock
        self._gossip: Gossip | None = None
        self._own = OwnState()
        self._own_filter = b""
        self._sorted_adapters: tuple[bytes, ...] = ()
        self._filters: OrderedDict[bytes, AdapterFilter] = OrderedDict()
        self._charged: OrderedDict[tuple[str, bytes, Fault], None] = OrderedDict()
        self._questions: Buckets[str] = Buckets(QUESTIONS)
        self._seq = 0
        self._told: tuple[bytes, ...] = ()
        """The bases that the last advert named."""
        self._changed = trio.Event()
        self._material = False

    def update(self, state: OwnState) -> None:
        """What this node says of itself from now on. A material change goes out soon, others with the next advert."""
        if state.adapters != self._own.adapters:
            self._sorted_adapters = tuple(sorted(state.adapters))
            self._own_filter = AdapterFilter.build(state.adapters).pack() if state.adapters else b""
        self._material |= is_material(self._own, state)
        self._own = state
        self._changed.set()

    def judge(self, data: bytes, sender: str) -> Outcome | None:
        """Take an advert that `sender` handed on, or refuse it (None) and charge the sender for what is wrong."""
        now = self._clock()
        head = peek(data)
        if head is not None and self.table.holds(data, head[0]):
            return Outcome.KNOWN
        try:
            advert = read_advert(data, now, self._options.domain, self._keys)
        except AdvertRefused as refusal:
            self._charge(sender, head[0] if head else b"", refusal.fault)
            return None
        outcome = self.table.offer(advert, now)
        if outcome is Outcome.REPLAYED:
            self._charge(sender, advert.node, Fault.REPLAYED)
        return outcome

    async def fetch(self, peer: str) -> int:
        """Ask a connected peer for the adverts that this host lacks; returns how many were news."""
        stream = await self._host.open(peer, ADVERT)
        news = 0
        try:
            for _ in range(MAX_PAGES):
                answer = await stream.ask(GetAdverts(known=self.table.known()), ANSWER_TIMEOUT_S)
                adverts, more = (answer.adverts, answer.more) if isinstance(answer, Adverts) else ((), False)
                fresh = 0
                for data in adverts:
                    fresh += self.judge(data, peer) is Outcome.NEW
                    await trio.lowlevel.checkpoint()
                news += fresh
                if not more or not fresh:
                    break
        except ProtocolError:
            self._host.charge(peer, Fault.MALFORMED)
            raise
        finally:
            await stream.close()
        return news

    async def filter_of(self, node: bytes) -> AdapterFilter | None:
        """The adapter filter of a known, connected node; None when it has no adapters. Raises NODE_LOST, NOT_FOUND."""
        advert = self.table.get(node)
        if advert is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "no advert of this node is known")
        digest = advert.value.filter_digest
        if digest == ZERO32:
            return None
        if digest not in self._filters:
            answer = await self._ask(advert.peer, GetFilter(digest=digest))
            if not isinstance(answer, Filter) or filter_digest(answer.data) != digest:
                self._host.charge(advert.peer, Fault.LIED)
                raise OpenLoraError(ErrorCode.NOT_FOUND, "the node did not give the filter that it advertised")
            self._filters[digest] = AdapterFilter.unpack(answer.data)
            if len(self._filters) > MAX_FILTERS:
                self._filters.popitem(last=False)
        self._filters.move_to_end(digest)
        return self._filters[digest]

    def known_filter(self, node: bytes) -> AdapterFilter | None:
        """The same if it is at hand: routing does not wait for the network."""
        advert = self.table.get(node)
        return self._filters.get(advert.value.filter_digest) if advert else None

    async def adapters_of(self, peer: str, most: int = 100_000) -> tuple[bytes, ...]:
        """The exact list of a connected peer's adapters, at most `most`. Raises NODE_LOST, MALFORMED."""
        found: list[bytes] = []
        while len(found) < most:
            answer = await self._ask(peer, GetAdapters(after=found[-1] if found else ZERO32))
            if not isinstance(answer, Adapters) or not _ascend([*found[-1:], *answer.ids]):
                self._host.charge(peer, Fault.MALFORMED)
                raise ProtocolError(ErrorCode.MALFORMED, "a list of adapters ascends")
            found += answer.ids
            if not answer.more or not answer.ids:
                break
        return tuple(found[:most])

    async def follow(self, base: bytes) -> None:
        """Hear the adverts of a base model's nodes, and hand them on."""
        assert self._gossip is not None, "advertising is not running"
        await self._gossip.follow(topic_of(base))

    async def publish(self) -> Advert | None:
        """Send this node's advert now; None for a gateway and for a node without base models."""
        options = self._options
        if options.node is None or options.key is None or not self._own.base_models:
            return None
        now = self._clock()
        self._seq = max(self._seq + 1, int(now * 1_000_000))  # rises across restarts too
        lifetime = int(TTL_INTERVALS * interval_s(options.interval, len(self.table)))
        signed = make_advert(
            options.node,
            self._own,
            filter_digest(self._own_filter),
            seq=self._seq,
            now=int(now),
            lifetime_s=max(1, lifetime),
            domain=options.domain,
            key=options.key,
        )
        advert = Advert(signed.value, signed.pack(), self._host.id)
        self.table.offer(advert, now)
        self._material = False
        # Who follows a base that is served no more hears so at once, not when the older advert expires.
        told, self._told = self._told, self._own.base_models
        for base in dict.fromkeys((*self._told, *told)):
            await self.follow(base)
            assert self._gossip is not None
            await self._gossip.publish(topic_of(base), advert.packed)
        return advert

    def record(self, lifetime_s: int) -> Advert | None:
        """This node's record for the directory: how to reach it, for longer than an advert lives; None without bases.

        It calls the node JOINING and is older than the newest advert: shown as an advert it revives nobody.
        """
        options, own = self._options, self._own
        if options.node is None or options.key is None or not own.base_models or not self._seq:
            return None
        state = replace(own, state=NodeState.JOINING, adapters=frozenset())
        signed = make_advert(
            options.node,
            state,
            ZERO32,
            seq=self._seq - 1,
            now=int(self._clock()),
            lifetime_s=lifetime_s,
            domain=options.domain,
            key=options.key,
        )
        return Advert(signed.value, signed.pack(), self._host.id)

    @property
    def bases(self) -> tuple[bytes, ...]:
        """Base models that this node serves."""
        return self._own.base_models if self._options.node is not None else ()

    async def run(self) -> None:
        """Send adverts, regularly and on change; forget expired ones. Until cancelled."""
        published = -float("inf")
        while True:
            self._changed = trio.Event()
            pause = interval_s(self._options.interval, len(self.table))
            soon = min(pause, debounce_s(pause if pause > self._options.interval else 0.0, self._options.debounce))
            due = published + (soon if self._material else pause)
            if trio.current_time() >= due:
                try:
                    await self.publish()
                except OpenLoraError as error:
                    logger.warning("the advert could not be sent: %s", error)
                    self._material = False
                published = trio.current_time()
                self.table.expire(self._clock())
                continue
            with trio.move_on_at(due):
                await self._changed.wait()

    async def reconcile(self) -> None:
        """Now and then fetch what a connected peer knows. Until cancelled."""
        while True:
            await trio.sleep(self._options.reconcile * (0.5 + random.random()))  # noqa: S311 - apart from the others
            peers = self._host.peers()
            if peers:
                try:
                    await self.fetch(random.choice(peers).id)  # noqa: S311 - any will do
                except OpenLoraError as error:
                    logger.debug("reconciling: %s", error)

    async def farewell(self) -> None:
        """Tell others that this node is going, as far as they listen within a moment."""
        if self._own.base_models:
            self._own = OwnState(state=NodeState.OFFLINE, base_models=self._own.base_models)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_S) as scope:
                try:
                    if await self.publish() is not None:
                        await trio.sleep(FAREWELL_S / 2)  # the gossip's queues have no end to wait for
                except Exception as error:  # noqa: BLE001 - the node is stopping
                    logger.debug("no farewell: %s", error)
            if scope.cancelled_caught:
                logger.debug("no time for a farewell")

    async def answer(self, stream: FramedStream[AdvertMessage]) -> None:
        """Serve `/openlora/advert/1`."""
        while (question := await stream.receive(IDLE_S)) is not None:
            if not self._questions.take(stream.peer.id, trio.current_time()):
                self._host.charge(stream.peer.id, Fault.FLOOD)
                await stream.send(ErrorReply.of(OpenLoraError(ErrorCode.RATE_LIMITED, retry_after_ms=1000)))
                continue
            await stream.send(self._reply(question))

    async def greet(self, peer: Peer) -> None:
        """A new connection: fetch what it knows, so that a newcomer has a full table at once."""
        try:
            await self.fetch(peer.id)
        except OpenLoraError as error:
            if error.code is not ErrorCode.UNSUPPORTED:  # a peer of another kind
                raise

    def _reply(self, question: AdvertMessage) -> AdvertMessage:
        if isinstance(question, GetAdverts):
            adverts, more = self.table.newer_than(question.known, self._clock(), PAGE_ADVERTS)
            return Adverts(adverts=adverts, more=more)
        if isinstance(question, GetFilter):
            if self._own_filter and question.digest == filter_digest(self._own_filter):
                return Filter(data=self._own_filter)
            return ErrorReply.of(OpenLoraError(ErrorCode.NOT_FOUND))
        if isinstance(question, GetAdapters):
            after = [adapter for adapter in self._sorted_adapters if adapter > question.after]
            return Adapters(ids=tuple(after[:PAGE_ADAPTERS]), more=len(after) > PAGE_ADAPTERS)
        raise ProtocolError(ErrorCode.MALFORMED, "an answer nobody asked for")

    async def _ask(self, peer: str, question: AdvertMessage) -> AdvertMessage:
        stream = await self._host.open(peer, ADVERT)
        try:
            return await stream.ask(question, ANSWER_TIMEOUT_S)
        finally:
            await stream.close()

    def _charge(self, sender: str, node: bytes, fault: Fault) -> None:
        """Once for a sender and node where an honest relay sees the chain or the time differently; else each time."""
        if sender == self._host.id:
            return
        if fault in CHARGED_ONCE:
            key = (sender, node, fault)
            if key in self._charged:
                return
            self._charged[key] = None
            if len(self._charged) > MAX_CHARGED:
                self._charged.popitem(last=False)
        self._host.charge(sender, fault)


@asynccontextmanager
async def open_advertising(
    host: Host, options: AdvertOptions, keys: KeyView, clock: Callable[[], float] = time.time
) -> AsyncIterator[Advertising]:
    """Advertising on a running host."""
    advertising = Advertising(host, options, keys, clock)

    def judge(data: bytes, sender: str) -> bool:
        return advertising.judge(data, sender) in (Outcome.NEW, Outcome.KNOWN)

    async with open_gossip(host, judge) as gossip:
        advertising._gossip = gossip
        host.serve(ADVERT, advertising.answer)
        host.on_connected(advertising.greet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(advertising.run)
            nursery.start_soon(advertising.reconcile)
            try:
                yield advertising
            finally:
                with trio.CancelScope(shield=True):
                    await advertising.farewell()
                nursery.cancel_scope.cancel()


def _ascend(ids: Iterable[bytes]) -> bool:
    return all(a < b for a, b in pairwise(ids))
