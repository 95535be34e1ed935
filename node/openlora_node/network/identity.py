"""Who a peer is: node key ↔ libp2p identity ↔ address ↔ node id. Opens no connection.

A secp256k1 peer id holds the whole public key, so the address behind it needs no lookup; which node that address
speaks for is the registry's word alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coincurve import PublicKey
from libp2p.crypto.keys import KeyPair, KeyType
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID

from ..protocol.crypto import Address, public_key_address
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import NodeId

MAX_PEER_ID_CHARACTERS = 64


class RegistryView(Protocol):
    """What the network asks of the chain's NodeRegistry. Called from the network's thread: must not block."""

    def node_of(self, address: bytes) -> bytes | None:
        """The node id whose current key has this address; None when no registered node has it."""
        ...

    def key_of(self, node: bytes) -> bytes | None:
        """The address of a node's current key; None for a node that is not registered."""
        ...

    def endpoints(self) -> tuple[str, ...]:
        """Dialable multiaddrs, with peer ids, that registered nodes published on chain."""
        ...


@dataclass(frozen=True)
class Peer:
    """An authenticated remote peer. `address` is None for keys that are not secp256k1, `node` for strangers."""

    id: str
    address: Address | None
    node: NodeId | None


def key_pair(secret: bytes) -> KeyPair:
    """The libp2p key pair of a 32-byte secp256k1 secret: the node key, or a gateway's ephemeral one."""
    return create_new_key_pair(secret)


def peer_id_of(secret: bytes) -> str:
    """The text of the peer id that a secret stands for (`16Uiu2HA…`)."""
    return ID.from_pubkey(create_new_key_pair(secret).public_key).to_base58()


def parse_peer_id(text: str) -> ID:
    """Base58 text → peer id. Raises ProtocolError BAD_ID."""
    try:
        peer = ID.from_base58(text) if len(text) <= MAX_PEER_ID_CHARACTERS else None
    except ValueError:
        peer = None
    if peer is None or peer.to_base58() != text or not 34 <= len(peer.to_bytes()) <= 42:
        raise ProtocolError(ErrorCode.BAD_ID, "a peer id is base58 text such as 16Uiu2HA…")
    return peer


def peer_address(peer: ID) -> Address | None:
    """The address of the key inside a secp256k1 peer id; None for other kinds of key."""
    try:
        key = peer.extract_public_key()
        if key is None or key.get_type() is not KeyType.Secp256k1:
            return None
        return public_key_address(PublicKey(key.to_bytes()))
    except Exception:  # noqa: BLE001 - whatever a stranger's bytes make protobuf or the curve raise
        return None


def identify(peer: ID, registry: RegistryView) -> Peer:
    """Who an authenticated peer is, by its key and the registry's present word."""
    address = peer_address(peer)
    node = registry.node_of(address) if address is not None else None
    return Peer(peer.to_base58(), address, None if node is None else NodeId(node))
