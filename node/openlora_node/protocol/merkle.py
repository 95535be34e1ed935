"""Keccak Merkle trees that Solidity verifies: OpenZeppelin's `StandardMerkleTree` shape, checked by its `MerkleProof`.

A leaf is keccak(keccak(words)): hashed twice, so that no inner node (one hash of 64 bytes) can pass for a leaf. Pairs
are sorted, so a proof needs no left/right flags. Leaves stand in ascending order, so a root depends on the set alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .crypto import keccak256
from .errors import ErrorCode, ProtocolError
from .ids import ZERO32


def leaf_hash(*words: bytes) -> bytes:
    """keccak(keccak(abi.encode(words))): each word 32 bytes. Returns 32 bytes."""
    if not words or any(len(word) != 32 for word in words):
        raise ProtocolError(ErrorCode.MALFORMED, "a leaf is made of 32-byte words")
    return keccak256(keccak256(b"".join(words)))


def receipt_leaf(salt: bytes, receipt_digest: bytes) -> bytes:
    """Leaf of an epoch's tree: (bytes32 salt, bytes32 digest). The salt keeps receipts not shown from being guessed."""
    return leaf_hash(salt, receipt_digest)


def amount_leaf(account: bytes, amount: int) -> bytes:
    """Leaf (address account, uint256 amount): a share table's basis points, a credits root's cumulative wei."""
    if len(account) != 20 or not 0 <= amount < 1 << 256:
        raise ProtocolError(ErrorCode.MALFORMED, "an amount leaf is an address and a uint256")
    return leaf_hash(bytes(12) + account, amount.to_bytes(32, "big"))


@dataclass(frozen=True, order=True)
class NamedLeaf:
    """One named fact under a receipt's attributionRoot or commitmentRoot."""

    name: str
    value: bytes
    """32 bytes: the fact itself or its hash."""
    salt: bytes = ZERO32
    """32 random bytes where the value could be guessed."""

    def hash(self) -> bytes:
        """Leaf (bytes32 keccak(name), bytes32 salt, bytes32 value)."""
        return leaf_hash(name_hash(self.name), self.salt, self.value)


@lru_cache(maxsize=4096)
def name_hash(name: str) -> bytes:
    """keccak(name): receipts use few names over and over."""
    return keccak256(name.encode())


def named_root(leaves: Sequence[NamedLeaf]) -> bytes:
    """Root over named leaves, 32 zero bytes when there are none. Raises MALFORMED when a name stands twice."""
    if len({leaf.name for leaf in leaves}) != len(leaves):
        raise ProtocolError(ErrorCode.MALFORMED, "a named leaf stands once under its root")
    return MerkleTree(leaf.hash() for leaf in leaves).root if leaves else ZERO32


class MerkleTree:
    """A complete binary tree over distinct leaf hashes; node i has children 2i+1 and 2i+2, leaves fill the end."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._leaves = sorted(leaves)
        if not self._leaves or any(len(leaf) != 32 for leaf in self._leaves):
            raise ProtocolError(ErrorCode.MALFORMED, "a tree has at least one leaf of 32 bytes")
        if len(set(self._leaves)) != len(self._leaves):
            raise ProtocolError(ErrorCode.MALFORMED, "a leaf stands once in its tree")
        count = len(self._leaves)
        self._nodes = [b""] * (count - 1) + self._leaves[::-1]
        for index in range(count - 2, -1, -1):
            self._nodes[index] = _pair(self._nodes[2 * index + 1], self._nodes[2 * index + 2])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._nodes[0]

    def __len__(self) -> int:
        return len(self._leaves)

    def proof(self, leaf: bytes) -> tuple[bytes, ...]:
        """Sibling hashes from the leaf up. Raises ProtocolError NOT_FOUND for a leaf that is not in the tree."""
        rank = bisect_left(self._leaves, leaf)
        if rank == len(self._leaves) or self._leaves[rank] != leaf:
            raise ProtocolError(ErrorCode.NOT_FOUND, "this leaf is not in the tree")
        index = len(self._nodes) - 1 - rank
        siblings = []
        while index:
            siblings.append(self._nodes[index - 1 if index % 2 == 0 else index + 1])
            index = (index - 1) // 2
        return tuple(siblings)


def verify_proof(root: bytes, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` leads from `leaf` to `root`, as OpenZeppelin's MerkleProof.verify decides it for bytes32."""
    if any(len(word) != 32 for word in (root, leaf, *proof)):
        return False
    return root_by(leaf, proof) == root


def root_by(leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Where `proof`, siblings from the leaf up, leads from `leaf`."""
    node = leaf
    for sibling in proof:
        node = _pair(node, sibling)
    return node


def _pair(left: bytes, right: bytes) -> bytes:
    return keccak256(left + right if left < right else right + left)
