"""The node registry: nodes, their keys and stakes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ChainError, ChainErrorCode
from .contract import Calldata, Contract


@dataclass(frozen=True, slots=True)
class Node:
    """A registered node. `key` is the node key's address."""

    owner: bytes
    deregistered: bool
    recipient: bytes
    key: bytes
    staked: int
    thawing: int
    thaw_end: int


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The life of a node key, times in unix seconds; `valid_until` is 0 while it is current, `node` zero for no key."""

    node: bytes
    x: bytes
    valid_from: int
    valid_until: int
    odd_y: bool


class NodeRegistry(Contract):
    """Nodes, their keys and stakes."""

    name = "NodeRegistry"

    async def next_node_id(self, owner: bytes) -> bytes:
        """The id that the owner's next registration gets."""
        return bytes((await self._read("nextNodeId", owner))[0])

    async def node_of(self, node: bytes) -> Node:
        """A node, all zero when there is none."""
        ((owner, deregistered, recipient, key, (staked, thawing, thaw_end)),) = await self._read("nodeOf", node)
        return Node(owner, deregistered, recipient, key, staked, thawing, thaw_end)

    async def find_node(self, node: bytes) -> Node | None:
        """A node, None when there is none."""
        try:
            return await self.node_of(node)
        except ChainError as error:
            if error.code is ChainErrorCode.REVERTED and "UnknownNode" in error.message:
                return None
            raise

    async def endpoint_of(self, node: bytes) -> str:
        """Where a registered node says it is reached."""
        return str((await self._read("endpointOf", node))[0])

    async def key_of(self, key: bytes) -> NodeKey:
        """The life of a key, by its address."""
        ((node, x, valid_from, valid_until, odd_y),) = await self._read("keyOf", key)
        return NodeKey(node, x, valid_from, valid_until, odd_y)

    async def peer_id_of(self, key: bytes) -> bytes:
        """The libp2p peer id of a registered key, as its multihash."""
        return bytes((await self._read("peerIdOf", key))[0])

    async def thaw_period(self) -> int:
        """Seconds that stake thaws."""
        return int((await self._read("THAW_PERIOD"))[0])

    async def is_active(self, node: bytes) -> bool:
        """Registered, and its key is valid."""
        return bool((await self._read("isActive", node))[0])

    async def min_stake(self) -> int:
        """Wei that a registration carries at least."""
        return int((await self._read("MIN_STAKE"))[0])

    def register(
        self, x: bytes, y: bytes, recipient: bytes, endpoint: str, deadline: int, proof: bytes, stake: int
    ) -> Calldata:
        """Register a node key (its public point) with a signature of that key."""
        return self._write("register", x, y, recipient, endpoint, deadline, proof, value=stake)

    def rotate_key(self, node: bytes, x: bytes, y: bytes, deadline: int, proof: bytes) -> Calldata:
        """Replace the node key."""
        return self._write("rotateKey", node, x, y, deadline, proof)

    def set_recipient(self, node: bytes, recipient: bytes) -> Calldata:
        """Where the node's earnings go."""
        return self._write("setRecipient", node, recipient)

    def set_endpoint(self, node: bytes, endpoint: str) -> Calldata:
        """Where the node is found."""
        return self._write("setEndpoint", node, endpoint)

    def add_stake(self, node: bytes, wei: int) -> Calldata:
        """Stake more."""
        return self._write("addStake", node, value=wei)

    def thaw_stake(self, node: bytes, wei: int) -> Calldata:
        """Begin to take stake out."""
        return self._write("thawStake", node, wei)

    def withdraw_stake(self, node: bytes) -> Calldata:
        """Take out what has thawed."""
        return self._write("withdrawStake", node)

    def deregister(self, node: bytes) -> Calldata:
        """Close the node; its vouchers stay redeemable."""
        return self._write("deregister", node)
