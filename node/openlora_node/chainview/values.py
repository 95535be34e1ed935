"""What the chain view tells, as values: registered nodes, terms, escrow, and the events that rooms act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from ..protocol.crypto import Address


class Scope(IntEnum):
    """The two doors of an artifact, numbered as in the ArtifactRegistry."""

    USE = 0
    """Who may send requests through it; the subject is a payer's address."""
    HOST = 1
    """Who may hold its weights; the subject is a node id."""


class Kind(IntEnum):
    """What an artifact is, numbered as in the ArtifactRegistry."""

    NONE = 0
    BASE = 1
    ADAPTER = 2
    DATASET = 3


FOREVER = (1 << 64) - 1
"""What `accepted_until` gives for terms that are current."""
NOBODY = Address(bytes(20))


@dataclass(frozen=True)
class Terms:
    """One version of an artifact's terms. An unregistered artifact has kind 0, version 0, rate 0 and no owner."""

    artifact: bytes
    kind: int = Kind.NONE
    owner: Address = NOBODY
    version: int = 0
    rate: int = 0
    """Wei per 1,000,000 tokens."""
    shares_root: bytes = bytes(32)
    """Of a dataset's share table, 32 zero bytes without one."""
    credits_bps: int = 0
    components: tuple[tuple[bytes, int], ...] = ()
    """(artifact id, basis points) of what is passed on."""


@dataclass(frozen=True)
class NodeEntry:
    """A node as the registry has it. `active` is in service with at least the least stake."""

    node: bytes
    owner: Address
    key: Address
    recipient: Address
    endpoint: str
    active: bool
    registered: bool = True
    """Not deregistered. A registered node whose stake was slashed below the least is not active."""
    peer_id: bytes = field(default=b"", repr=False)
    """The libp2p peer id of its key, as its multihash."""


@dataclass(frozen=True)
class EscrowState:
    """A payer's escrow with a node, in wei; `thaw_end` is unix seconds, 0 while nothing thaws."""

    balance: int
    thawing: int = 0
    thaw_end: int = 0


@dataclass(frozen=True)
class ThawStarted:
    """A payer takes escrow out of this node's reach; vouchers are safe if redeemed before `thaw_end` (unix seconds)."""

    payer: Address
    node: bytes
    thawing: int
    thaw_end: int


@dataclass(frozen=True)
class TermsChanged:
    """An artifact has a new version of its terms; vouchers under the version before redeem for the grace period."""

    artifact: bytes
    version: int


@dataclass(frozen=True)
class AccessChanged:
    """A door of an artifact has another rule, list or licence. `subject` None: perhaps everyone's access changed."""

    artifact: bytes
    scope: Scope
    subject: bytes | None = None


@dataclass(frozen=True)
class NodeKeyChanged:
    """Another key, or none any more (`key` None), speaks for a node."""

    node: bytes
    key: Address | None


ChainEvent: TypeAlias = ThawStarted | TermsChanged | AccessChanged | NodeKeyChanged
