"""Keccak Merkle trees: every leaf proves, nothing else does, the root is that of the set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.crypto import keccak256
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.merkle import (
    MerkleTree,
    NamedLeaf,
    amount_leaf,
    leaf_hash,
    named_root,
    receipt_leaf,
    verify_proof,
)
from support.strategies import bytes32

leaf_sets = st.lists(bytes32, min_size=1, max_size=40, unique=True)


@given(leaves=leaf_sets, shuffle=st.randoms())
def test_every_leaf_proves_and_order_does_not_matter(leaves: list[bytes], shuffle: object) -> None:
    tree = MerkleTree(leaves)
    assert len(tree) == len(leaves)
    for leaf in leaves:
        proof = tree.proof(leaf)
        assert verify_proof(tree.root, leaf, proof)
        assert len(proof) <= (len(leaves) - 1).bit_length()
    shuffle.shuffle(leaves)  # type: ignore[attr-defined]
    assert MerkleTree(leaves).root == tree.root


@given(leaves=leaf_sets, stranger=bytes32, bit=st.integers(0, 255))
def test_strangers_and_flipped_bits_do_not_prove(leaves: list[bytes], stranger: bytes, bit: int) -> None:
    tree = MerkleTree(leaves)
    if stranger not in leaves:
        with pytest.raises(ProtocolError) as caught:
            tree.proof(stranger)
        assert caught.value.code == ErrorCode.NOT_FOUND
        assert not verify_proof(tree.root, stranger, tree.proof(leaves[0]))
    proof = list(tree.proof(leaves[0]))
    flipped = bytes(b ^ (1 << bit % 8 if n == bit // 8 else 0) for n, b in enumerate(leaves[0]))
    assert flipped in leaves or not verify_proof(tree.root, flipped, proof)
    for place in range(len(proof)):
        wrong = [*proof[:place], keccak256(proof[place]), *proof[place + 1 :]]
        assert not verify_proof(tree.root, leaves[0], wrong)


def test_only_32_byte_words_prove() -> None:
    low, high = sorted(leaf_hash(bytes((n,)) * 32) for n in range(2))
    root = MerkleTree([low, high]).root
    assert verify_proof(root, low, [high])
    both = low + high
    for leaf, proof in ((b"", [both]), (both[:16], [both[16:]]), (low, [high, b""]), (both, [])):
        assert not verify_proof(root, leaf, proof)
    assert not verify_proof(b"", b"", [])


def test_three_leaves_by_hand() -> None:
    a, b, c = sorted(leaf_hash(bytes((n,)) * 32) for n in range(3))
    pair = keccak256(a + b)
    root = keccak256(min(pair, c) + max(pair, c))
    assert MerkleTree([c, a, b]).root == root


def test_an_inner_node_is_no_leaf() -> None:
    words = [bytes((n,)) * 32 for n in range(2)]
    inner = keccak256(b"".join(words))
    assert leaf_hash(*words) == keccak256(inner) != inner


@pytest.mark.parametrize("leaves", [[], [b""], [b"\x01" * 31], [b"\x01" * 32] * 2])
def test_odd_trees_are_refused(leaves: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        MerkleTree(leaves)


def test_leaf_words_are_32_bytes() -> None:
    for words in ((), (b"\x01" * 31,), (bytes(32), b"")):
        with pytest.raises(ProtocolError):
            leaf_hash(*words)
    for account, amount in ((bytes(19), 0), (bytes(20), -1), (bytes(20), 2**256)):
        with pytest.raises(ProtocolError):
            amount_leaf(account, amount)


def test_named_roots() -> None:
    one, two = NamedLeaf("sampler", b"\1" * 32, b"\2" * 32), NamedLeaf("datasets", b"\3" * 32)
    assert named_root([]) == ZERO32
    assert named_root([one]) == one.hash()
    assert named_root([one, two]) == named_root([two, one]) == MerkleTree([one.hash(), two.hash()]).root
    with pytest.raises(ProtocolError):
        named_root([one, NamedLeaf("sampler", b"\4" * 32)])


def test_the_salt_hides_the_receipt() -> None:
    assert receipt_leaf(b"\1" * 32, b"\2" * 32) != receipt_leaf(b"\3" * 32, b"\2" * 32)
