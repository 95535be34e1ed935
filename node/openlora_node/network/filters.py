"""A compact set of artifact ids: xor filter (Graf and Lemire, arXiv 1912.08258) with 8-bit fingerprints. Pure.

No id that is in the set is missed; one that is not is taken for a member with probability 1/256. 1.23 bytes an id:
10,000 ids take 12.1 KiB of the 16 KiB that the protocol allows.

Bytes: version 1 (1) ‖ seed (4) ‖ segment length (4) ‖ fingerprints (3 × segment length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ..protocol.errors import ErrorCode, ProtocolError

VERSION = 1
HEADER = 9
MAX_FILTER_BYTES = 16 * 1024
MAX_IDS = 13_000
"""What fits: 3 × ((1.23 × 13,000 + 32) / 3) + 9 ≤ 16,384."""
MAX_SEEDS = 128


class AdapterFilter:
    """A built or received filter."""

    __slots__ = ("_fingerprints", "_seed", "_segment")

    def __init__(self, seed: int, segment: int, fingerprints: bytes) -> None:
        self._seed = seed
        self._segment = segment
        self._fingerprints = fingerprints

    def __contains__(self, artifact: bytes) -> bool:
        a, b, c, fingerprint = _places(artifact, self._seed, self._segment)
        table = self._fingerprints
        return table[a] ^ table[b] ^ table[c] == fingerprint

    def pack(self) -> bytes:
        """The filter's bytes; their SHA-256 is the digest that an advert carries."""
        return bytes([VERSION]) + self._seed.to_bytes(4, "big") + self._segment.to_bytes(4, "big") + self._fingerprints

    @classmethod
    def unpack(cls, data: bytes) -> AdapterFilter:
        """Read a filter. Raises ProtocolError MALFORMED."""
        segment = int.from_bytes(data[5:9], "big")
        if not HEADER < len(data) <= MAX_FILTER_BYTES or data[0] != VERSION or len(data) != HEADER + 3 * segment:
            raise ProtocolError(ErrorCode.MALFORMED, "not an adapter filter of version 1")
        return cls(int.from_bytes(data[1:5], "big"), segment, data[HEADER:])

    @classmethod
    def build(cls, artifacts: Iterable[bytes]) -> AdapterFilter:
        """The filter of at most MAX_IDS distinct 32-byte ids; deterministic. Raises MALFORMED for more."""
        ids = sorted(set(artifacts))
        if len(ids) > MAX_IDS:
            raise ProtocolError(ErrorCode.MALFORMED, f"a filter holds at most {MAX_IDS} adapters")
        segment = (int(1.23 * len(ids)) + 32 + 2) // 3
        for seed in range(MAX_SEEDS):
            fingerprints = _peel([_places(artifact, seed, segment) for artifact in ids], segment)
            if fingerprints is not None:
                return cls(seed, segment, fingerprints)
        raise ProtocolError(ErrorCode.INTERNAL, "no seed fits these adapters")  # chance below 2^-128


def filter_digest(packed: bytes) -> bytes:
    """SHA-256 of a packed filter."""
    return hashlib.sha256(packed).digest()


Places = tuple[int, int, int, int]


def _places(artifact: bytes, seed: int, segment: int) -> Places:
    """One slot in each third of the table, and the fingerprint."""
    h = hashlib.blake2b(artifact, digest_size=16, salt=seed.to_bytes(4, "big")).digest()
    return (
        int.from_bytes(h[0:4], "big") % segment,
        int.from_bytes(h[4:8], "big") % segment + segment,
        int.from_bytes(h[8:12], "big") % segment + 2 * segment,
        h[12],
    )


def _peel(places: list[Places], segment: int) -> bytes | None:
    """Fingerprints such that the three slots of each id xor to its own; None when this seed does not allow it."""
    size = 3 * segment
    count = [0] * size
    holds = [0] * size  # xor of the indices of the ids at a slot: the last one left is readable
    for index, (a, b, c, _) in enumerate(places):
        for slot in (a, b, c):
            count[slot] += 1
            holds[slot] ^= index
    alone = [slot for slot in range(size) if count[slot] == 1]
    order: list[tuple[int, int]] = []
    while alone:
        slot = alone.pop()
        if count[slot] != 1:
            continue
        index = holds[slot]
        order.append((index, slot))
        for other in places[index][:3]:
            count[other] -= 1
            holds[other] ^= index
            if count[other] == 1:
                alone.append(other)
    if len(order) < len(places):
        return None
    table = bytearray(size)
    for index, slot in reversed(order):
        a, b, c, fingerprint = places[index]
        table[slot] = 0
        table[slot] = fingerprint ^ table[a] ^ table[b] ^ table[c]
    return bytes(table)
