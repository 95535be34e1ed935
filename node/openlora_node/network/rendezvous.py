"""Rendezvous hashing (Thaler and Ravishankar 1998): an order of all nodes for each adapter, the same for everybody.

Whoever sends an adapter's requests to the first nodes of its order keeps it in the same few caches, without talking to
anyone. A node that comes or goes moves only what it holds. Works on ints and on numpy arrays of uint64 alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

MASK = (1 << 64) - 1
_A, _B = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53

T = TypeVar("T")


def node_key(node: bytes) -> int:
    """A node id as 64 bits."""
    return int.from_bytes(hashlib.sha256(b"node" + node).digest()[:8], "big")


def adapter_key(base: bytes, adapters: Iterable[bytes]) -> int:
    """What is to stay together in a cache, as 64 bits: a base and a set of adapters."""
    return int.from_bytes(hashlib.sha256(b"".join([base, *sorted(adapters)])).digest()[:8], "big")


def affinity(adapter: Any, node: Any) -> Any:
    """64 bits that order nodes for an adapter, the highest first: the finaliser of MurmurHash3."""
    x = adapter ^ node
    x = (x ^ (x >> 33)) * _A & MASK
    x = (x ^ (x >> 33)) * _B & MASK
    return x ^ (x >> 33)


def order(adapter: int, nodes: Sequence[tuple[int, T]]) -> list[T]:
    """Everything in `nodes` (key, value), best first."""
    return [value for _, value in sorted(nodes, key=lambda entry: -affinity(adapter, entry[0]))]
