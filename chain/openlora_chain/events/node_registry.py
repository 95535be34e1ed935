"""What the node registry tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeRegistered:
    """NodeRegistry: a new node. `peer_id` is the multihash of its key."""

    node: bytes
    owner: bytes
    key: bytes
    peer_id: bytes
    recipient: bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class KeyRotated:
    """NodeRegistry: another key speaks for the node."""

    node: bytes
    old_key: bytes
    new_key: bytes
    peer_id: bytes


@dataclass(frozen=True, slots=True)
class RecipientChanged:
    """NodeRegistry: earnings go elsewhere."""

    node: bytes
    recipient: bytes


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """NodeRegistry: the node is reached elsewhere."""

    node: bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class StakeAdded:
    """NodeRegistry: `staked` is the new total."""

    node: bytes
    amount: int
    staked: int


@dataclass(frozen=True, slots=True)
class NodeDeregistered:
    """NodeRegistry: the node left service."""

    node: bytes


@dataclass(frozen=True, slots=True)
class NodeSlashed:
    """NodeRegistry: stake was taken."""

    node: bytes
    challenger: bytes
    slashed: int
    bounty: int


EVENTS = (
    NodeRegistered,
    KeyRotated,
    RecipientChanged,
    EndpointChanged,
    StakeAdded,
    NodeDeregistered,
    NodeSlashed,
)
