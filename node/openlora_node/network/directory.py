"""Finding nodes without a server of ours: a Kademlia table of this protocol's own, peers from wherever they are known.

The table holds two things: who serves a base model (provider records, hints that last for days) and how to reach a node
(its own signed record with an expiry of its own). Whether a node is up is said by adverts only.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import libp2p.kad_dht.common as kad_common
import libp2p.kad_dht.kad_dht as kad_module
import libp2p.kad_dht.peer_routing as kad_routing
import libp2p.kad_dht.provider_store as kad_providers
import libp2p.kad_dht.value_store as kad_values
import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator, Validator

from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from .adverts import Advert, AdvertRefused, KeyView, read_advert
from .host import Host
from .identity import Peer, RegistryView, parse_peer_id
from .peerfile import KnownPeer, PeerFile
from .reach_addresses import texts_of
from .services import running
from .stream import BROKEN

KAD_ID = "/openlora/kad/1"
NAMESPACE = "openlora"
KAD_MODULES = (kad_common, kad_module, kad_routing, kad_providers, kad_values)
PROVIDE_PACE_S = 1.5
"""A receiver takes ten records in ten seconds from one sender and drops more without a word."""
LOOKUP_TIMEOUT_S = 30.0
IDENTIFY_TIMEOUT_S = 5.0
SAVE_INTERVAL_S = 60.0
DIALS_AT_ONCE = 8
MAX_PROVIDERS = 20
MAX_PROVIDED_KEYS = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DirectoryOptions:
    """Where peers come from and what this host does for the table. Times in seconds."""

    domain: Domain
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs with peer ids."""
    peers_file: Path | None = None
    serve: bool = True
    """Keep part of the table. Hosts that others cannot reach must not."""
    enough_peers: int = 4
    first_retry: float = 1.0
    longest_retry: float = 60.0
    settled_interval: float = 300.0
    """Between looks for more peers once there are enough."""


class RecordValidator(Validator):
    """`/openlora/<node id>` holds the node's own signed record; the highest seq wins."""

    def __init__(self, domain: Domain, keys: KeyView, clock: Callable[[], float]) -> None:
        self._domain = domain
        self._keys = keys
        self._clock = clock

    def validate(self, key: str, value: bytes) -> None:
        """Refuse what the node did not sign, or what has expired, with the exception that libp2p expects."""
        try:
            record = read_advert(value, self._clock(), self._domain, self._keys)
        except AdvertRefused as refusal:
            raise InvalidRecordType(refusal.message) from None
        if key != record_key(record.node):
            raise InvalidRecordType("the record is another node's")

    def select(self, key: str, values: list[bytes]) -> int:
        """The index of the newest."""
        return max(range(len(values)), key=lambda index: self._seq(values[index]))

    def _seq(self, value: bytes) -> int:
        try:
            return read_advert(value, self._clock(), self._domain, self._keys).value.seq
        except AdvertRefused:
            return -1


def record_key(node: bytes) -> str:
    """The table's key of a node's record."""
    return f"/{NAMESPACE}/{node.hex()}"


def provider_key(base: bytes) -> str:
    """The table's key of a base model: its id as a multihash, in hex."""
    return f"1220{base.hex()}"


class Directory:
    """The table, and the search for peers. Made by `open_directory`."""

    def __init__(
        self, host: Host, table: KadDHT, options: DirectoryOptions, registry: RegistryView, clock: Callable[[], float]
    ) -> None:
        self._host = host
        self._table = table
        self._options = options
        self._registry = registry
        self._clock = clock
        self._file = PeerFile(options.peers_file) if options.peers_file else None
        self._validator = RecordValidator(options.domain, registry, clock)
        self._provided = trio.Lock()
        self._last_provide = -float("inf")
        self._look = trio.Event()

    @property
    def degraded(self) -> bool:
        """Whether no peer is connected: the node waits and keeps looking."""
        return not self._host.peers()

    def size(self) -> int:
        """Peers in the routing table."""
        return self._table.get_routing_table_size()

    async def set_serving(self, serve: bool) -> None:
        """Keep part of the table from now on, or none of it: a host that others cannot reach must not.

        libp2p empties the routing table on the way to a client; connected peers are put in again.
        """
        mode = DHTMode.SERVER if serve and self._options.serve else DHTMode.CLIENT
        if mode is not self._table.mode:
            await self._table.switch_mode(mode)
            for peer in self._host.peers():
                await self._table.add_peer(parse_peer_id(peer.id))

    async def provide(self, base: bytes) -> bool:
        """Say that this host serves a base model. True when a look at other peers finds it there."""
        async with self._provided:  # paced: the excess would be lost without an error
            await trio.sleep_until(self._last_provide + PROVIDE_PACE_S)
            with trio.move_on_after(LOOKUP_TIMEOUT_S):
                await self._table.provide(provider_key(base))
            self._last_provide = trio.current_time()
        return any(peer == self._host.id for peer, _ in await self.providers(base))

    async def providers(self, base: bytes) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Peers said to serve a base model, with addresses. Hints, of other peers rather than of this host's cache."""
        store, key = self._table.provider_store, bytes.fromhex(provider_key(base))
        cached = store.providers.pop(key, {})  # libp2p would answer from it, up to two days old
        found = []
        try:
            with trio.move_on_after(LOOKUP_TIMEOUT_S):
                found = await self._table.find_providers(provider_key(base), MAX_PROVIDERS)
        finally:
            store.providers[key] = {**cached, **store.providers.get(key, {})}
            if not store.providers[key]:
                del store.providers[key]
        hints = {p.peer_id.to_base58(): texts_of(p.addrs) for p in found}
        return tuple(hints.items())[:MAX_PROVIDERS]

    async def publish(self, record: Advert) -> None:
        """Store this node's own signed record with the peers closest to its key."""
        with trio.move_on_after(LOOKUP_TIMEOUT_S):
            try:
                await self._table.put_value(record_key(record.node), record.packed)
            except (InvalidRecordType, ValueError) as error:
                raise ProtocolError(ErrorCode.MALFORMED, "the table does not take this record") from error

    async def record(self, node: bytes) -> Advert | None:
        """A node's own record, valid and fresh from other peers; None when none is found."""
        key = record_key(node)
        cached = self._table.value_store.get(key.encode())
        if cached is not None:
            self._table.value_store.remove(key.encode())  # libp2p would look no further
        value = None
        try:
            with trio.move_on_after(LOOKUP_TIMEOUT_S):
                value = await self._table.get_value(key)
        finally:
            kept = [v for v in (value, bytes(cached.value) if cached else None) if v]
            valid = [v for v in kept if self._is_valid(key, v)]
            best = valid[self._validator.select(key, valid)] if valid else None
            if cached is not None and best is not None:
                self._table.value_store.put(key.encode(), best)
        return read_advert(best, self._clock(), self._options.domain, self._registry) if best else None

    async def find(self, base: bytes) -> int:
        """Connect to peers said to serve a base model; how many are connected then."""
        connected = 0
        for peer, addresses in await self.providers(base):
            if peer != self._host.id:
                connected += await self._try(peer, addresses)
        return connected

    async def greet(self, peer: Peer) -> None:
        """A new connection: into the routing table once identify has told what it speaks. libp2p does not by itself."""
        peer_id = parse_peer_id(peer.id)
        store = self._host.inner.get_peerstore()
        with trio.move_on_after(IDENTIFY_TIMEOUT_S):
            while not (peer_id in store.peer_ids() and store.get_protocols(peer_id)):  # noqa: ASYNC110 - has no event
                await trio.sleep(0.05)
            await self._table.add_peer(peer_id)

    def look_now(self) -> None:
        """Look for peers without waiting for the next time."""
        self._look.set()

    async def run(self) -> None:
        """Keep enough peers; back off while there are none. Until cancelled, whatever happens."""
        pause = self._options.first_retry
        while True:
            self._look = trio.Event()
            await self._gather()
            self._bound()
            enough = len(self._host.peers()) >= self._options.enough_peers
            if self.degraded:
                logger.info("no peers yet: looking again in %.0f s", pause)
            with trio.move_on_after(self._options.settled_interval if enough else pause * (0.75 + random.random() / 2)):  # noqa: S311
                await self._look.wait()
            pause = self._options.first_retry if enough else min(2 * pause, self._options.longest_retry)

    async def remember(self) -> None:
        """Write connected peers to disk now and then. Until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(SAVE_INTERVAL_S)
                try:
                    await trio.to_thread.run_sync(self.save)
                except Exception:
                    logger.exception("peers are not written to disk")
        finally:
            self.save()

    def save(self) -> None:
        """Write connected peers that can be dialled to disk."""
        if self._file is None:
            return
        store, now = self._host.inner.get_peerstore(), int(self._clock())
        seen = []
        for peer in self._host.peers():
            peer_id = ID.from_base58(peer.id)
            addresses = texts_of(store.addrs(peer_id), 8) if peer_id in store.peers_with_addrs() else ()
            if addresses:
                seen.append(KnownPeer(peer.id, addresses, now))
        if seen:
            self._file.merge(seen)

    def _bound(self) -> None:
        """libp2p keeps provider records of as many keys as strangers care to name."""
        store = self._table.provider_store
        strangers = [key for key in store.providers if key not in store.providing_keys]
        for key in strangers[: max(0, len(store.providers) - MAX_PROVIDED_KEYS)]:
            del store.providers[key]

    async def _gather(self) -> None:
        """Connect to candidates until there are enough peers."""
        limit = trio.CapacityLimiter(DIALS_AT_ONCE)

        async def attempt(peer: str, addresses: tuple[str, ...]) -> None:
            async with limit:
                if len(self._host.peers()) < self._options.enough_peers:
                    await self._try(peer, addresses)

        async with trio.open_nursery() as nursery:
            for peer, addresses in self._candidates():
                nursery.start_soon(attempt, peer, addresses)

    def _candidates(self) -> list[tuple[str, tuple[str, ...]]]:
        """Bootstrap peers, then peers remembered, then what nodes published on chain; each peer once."""
        known: dict[str, tuple[str, ...]] = {}
        for text in self._options.bootstrap:
            address, _, peer = text.rpartition("/p2p/")
            known[peer] = (*known.get(peer, ()), address)
        for each in self._file.read() if self._file else ():
            known.setdefault(each.peer, each.addresses)
        chain = list(self._registry.endpoints())
        random.shuffle(chain)
        for text in chain[: 4 * DIALS_AT_ONCE]:
            address, _, peer = text.rpartition("/p2p/")
            known.setdefault(peer, (address,))
        return [(p, a) for p, a in known.items() if p != self._host.id and not self._is_connected(p)]

    def _is_connected(self, peer: str) -> bool:
        try:
            return self._host.is_connected(peer)
        except ProtocolError:
            return True  # no peer id at all: nothing to dial

    async def _try(self, peer: str, addresses: tuple[str, ...]) -> bool:
        try:
            await self._host.connect(peer, addresses)
        except (OpenLoraError, *BROKEN) as error:
            logger.debug("peer %s: %s", peer, error)
            return False
        return True

    def _is_valid(self, key: str, value: bytes) -> bool:
        try:
            self._validator.validate(key, value)
        except InvalidRecordType:
            return False
        return True


@asynccontextmanager
async def open_directory(
    host: Host, options: DirectoryOptions, registry: RegistryView, clock: Callable[[], float] = time.time
) -> AsyncIterator[Directory]:
    """The directory on a running host."""
    _name_protocol()
    validator = NamespacedValidator(
        {NAMESPACE: RecordValidator(options.domain, registry, clock)}, strict_validation=True
    )
    table = KadDHT(
        host.inner,
        DHTMode.SERVER if options.serve else DHTMode.CLIENT,
        validator=validator,
        validator_changed=True,
        strict_validation=True,
    )
    directory = Directory(host, table, options, registry, clock)
    host.on_connected(directory.greet)
    async with running(table), trio.open_nursery() as nursery:
        nursery.start_soon(directory.run)
        nursery.start_soon(directory.remember)
        yield directory
        nursery.cancel_scope.cancel()


def _name_protocol() -> None:
    """libp2p's `protocol_prefix` does not change what goes over the wire: these names do."""
    for module in KAD_MODULES:
        if not hasattr(module, "PROTOCOL_ID"):
            raise OpenLoraError(ErrorCode.INTERNAL, "this libp2p does not fit: pip install libp2p==0.8.1")
        module.PROTOCOL_ID = TProtocol(KAD_ID)  # type: ignore[attr-defined]
