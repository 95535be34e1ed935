"""Names for KV blocks: a block is named by everything that determined its contents. Knows no block and no cache."""

from __future__ import annotations

import hashlib
import struct

from .sequence import Sequence

HASH_SIZE = 16
"""Bytes of a name: 128 bits, so that nobody finds two prefixes of one name."""


class PrefixHasher:
    """Chained BLAKE2b: name(block i) = H(name(block i-1), its token ids); name(-1) = H(model, adapter digest, salt).

    Keys and values of a position depend on all tokens before it and on the weights that computed them, hence the chain
    and its root. `model` must change with anything that changes keys and values: weights, dtype, rope, quantisation.
    """

    def __init__(self, model: str, block_size: int) -> None:
        self.block_size = block_size
        self._model = model
        self._pack = struct.Struct(f"<{block_size}I").pack

    def root(self, adapter: str | None, cache_salt: str) -> bytes:
        """What the first block chains to. Fields carry their lengths, so no two triples look alike."""
        state = hashlib.blake2b(digest_size=HASH_SIZE)
        for text in (self._model, adapter or "", cache_salt):
            data = text.encode()
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
        return state.digest()

    def extend(self, seq: Sequence, num_blocks: int) -> list[bytes]:
        """Names of at least the first `num_blocks` blocks of `seq`, all of them full; computes the missing ones."""
        names = seq.block_hashes
        if len(names) < num_blocks:
            size, pack, tokens = self.block_size, self._pack, seq.token_ids
            assert num_blocks * size <= len(tokens), "only full blocks have names"
            parent = names[-1] if names else self.root(seq.adapter, seq.cache_salt)
            for start in range(len(names) * size, num_blocks * size, size):
                parent = hashlib.blake2b(parent + pack(*tokens[start : start + size]), digest_size=HASH_SIZE).digest()
                names.append(parent)
        return names
