"""The registered nodes, folded from events: look-ups that any thread may call and that never block. Pure.

An event that comes out of turn, or is undone by a reorg, is not folded: its node becomes `doubtful`, and whoever holds
the chain reads it again and calls `put`. So the result never depends on the order in which a node delivers its logs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from openlora_chain.events import (
    EndpointChanged,
    Event,
    KeyRotated,
    NodeDeregistered,
    NodeRegistered,
    NodeSlashed,
    RecipientChanged,
    StakeAdded,
)

from ..protocol.crypto import Address
from .values import NodeEntry

_log = logging.getLogger(__name__)

MAX_NODES = 65_536
MAX_ENDPOINTS = 1_024
MAX_ENDPOINT_CHARACTERS = 256
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

Position = tuple[int, int]
"""(block number, log index)."""
NodeEvent = (
    NodeRegistered | KeyRotated | RecipientChanged | EndpointChanged | StakeAdded | NodeDeregistered | NodeSlashed
)


class Registry:
    """Written from one thread, read from any."""

    def __init__(self, entries: Iterable[NodeEntry] = (), at: Position = (0, 0), size: int = MAX_NODES) -> None:
        self._size = size
        self._entries: dict[bytes, NodeEntry] = {}
        self._by_key: dict[bytes, bytes] = {}
        self._positions: dict[bytes, Position] = {}
        self._endpoints: tuple[int, tuple[str, ...]] = (-1, ())
        self._full = False
        self.doubtful: set[bytes] = set()
        """Nodes whose entry is to be read from the chain."""
        self.changes = 0
        """How often an entry changed: tells whether a snapshot is due."""
        for entry in entries:
            self.put(entry.node, entry, at)

    def __len__(self) -> int:
        return len(self._entries)

    def node_of(self, address: bytes) -> bytes | None:
        """The node whose current key has this address."""
        return self._by_key.get(address)

    def key_of(self, node: bytes) -> bytes | None:
        """The address of a registered node's current key."""
        entry = self._entries.get(node)
        return entry.key if entry is not None and entry.registered else None

    def node(self, node: bytes) -> NodeEntry | None:
        """Everything known of a node, deregistered ones included."""
        return self._entries.get(node)

    def entries(self) -> list[NodeEntry]:
        """All nodes."""
        return list(self._entries.values())

    def endpoints(self) -> tuple[str, ...]:
        """Multiaddrs, with the peer id of the node's key, of active nodes; the newest `MAX_ENDPOINTS`."""
        changes, known = self._endpoints
        if changes != self.changes:
            changes = self.changes
            found = [address for entry in self.entries() if entry.active and (address := dialable(entry))]
            known = tuple(found[-MAX_ENDPOINTS:])
            self._endpoints = changes, known
        return known

    def apply(self, event: Event, at: Position) -> bytes | None:
        """Fold one event in. Returns the node whose key changed by it, if one did."""
        if not isinstance(event, NodeEvent):
            return None
        node = event.node
        if at <= self._positions.get(node, (-1, -1)):
            self.doubtful.add(node)
            return None
        after = _fold(self._entries.get(node), event)
        if after is None:
            self.doubtful.add(node)
            return None
        # What made it doubtful before is not settled by what came after.
        doubtful = node in self.doubtful
        changed = self.put(node, after, at)
        if doubtful:
            self.doubtful.add(node)
        return changed

    def undo(self, event: Event) -> None:
        """An event's block is gone: what its node is now is to be read."""
        if isinstance(event, NodeEvent):
            self.doubtful.add(event.node)
            self._positions.pop(event.node, None)

    def put(self, node: bytes, entry: NodeEntry | None, at: Position) -> bytes | None:
        """Replace a node by what the chain says at `at`, None for no such node. Returns it if its key changed."""
        self.doubtful.discard(node)
        self._positions[node] = at
        before = self._entries.get(node)
        if entry is None or (before is None and len(self._entries) >= self._size and not self._make_room()):
            self._positions.pop(node, None)
            entry = None
        if before == entry:
            return None
        old_key, new_key = _speaking(before), _speaking(entry)
        if entry is None:
            self._entries.pop(node, None)
        else:
            self._entries[node] = entry
        if new_key is not None:
            self._by_key[new_key] = node
        if old_key is not None and old_key != new_key and self._by_key.get(old_key) == node:
            del self._by_key[old_key]
        self.changes += 1
        return node if old_key != new_key else None

    def doubt_all(self) -> None:
        """Everything is to be read again: a reorg deeper than what can be undone."""
        self.doubtful.update(self._entries)
        self._positions.clear()

    def _make_room(self) -> bool:
        """Forget a node that left service. False when all are in service."""
        gone = next((node for node, entry in self._entries.items() if not entry.registered), None)
        if gone is None:
            if not self._full:
                self._full = True
                _log.error("chain view: more than %d nodes are registered; the rest is not known here", self._size)
            return False
        del self._entries[gone]
        self._positions.pop(gone, None)
        return True


def dialable(entry: NodeEntry) -> str | None:
    """The node's endpoint as a multiaddr with its peer id; None where it published none, or one of another peer."""
    text = entry.endpoint.strip()
    if not text.startswith("/") or len(text) > MAX_ENDPOINT_CHARACTERS or not text.isascii() or not text.isprintable():
        return None
    address, found, peer = text.partition("/p2p/")
    own = base58(entry.peer_id)
    if not own or " " in text or (found and peer != own):
        return None
    return f"{address.rstrip('/')}/p2p/{own}"


def base58(data: bytes) -> str:
    """Base58 as Bitcoin writes it: the text of a peer id."""
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return _BASE58[0] * (len(data) - len(data.lstrip(b"\0"))) + text


def _fold(before: NodeEntry | None, event: NodeEvent) -> NodeEntry | None:
    """The entry after the event; None where the event alone does not tell."""
    if isinstance(event, NodeRegistered):
        return NodeEntry(
            node=event.node,
            owner=Address(event.owner),
            key=Address(event.key),
            recipient=Address(event.recipient),
            endpoint=event.endpoint,
            active=True,
            peer_id=event.peer_id,
        )
    return None if before is None else _changed(before, event)


def _changed(before: NodeEntry, event: NodeEvent) -> NodeEntry | None:
    after: NodeEntry | None = None  # slashed: whether it is still active, the chain says
    match event:
        case KeyRotated():
            after = replace(before, key=Address(event.new_key), peer_id=event.peer_id)
        case RecipientChanged():
            after = replace(before, recipient=Address(event.recipient))
        case EndpointChanged():
            after = replace(before, endpoint=event.endpoint)
        case NodeDeregistered():
            after = replace(before, active=False, registered=False)
        case StakeAdded() if before.active:
            after = before
    return after


def _speaking(entry: NodeEntry | None) -> bytes | None:
    return entry.key if entry is not None and entry.registered else None
