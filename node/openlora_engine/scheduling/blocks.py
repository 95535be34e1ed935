"""KV blocks: who holds which, which are free, and which still carry a prefix worth keeping. Knows no tensor."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from .prefix import PrefixHasher
from .sequence import Sequence


class BlockManager:
    """Blocks 0..num_blocks-1 of `hasher.block_size` tokens, each held by any number of sequences. All calls are O(1)
    a block.

    Only full blocks are shared, and only by name, so a held block is never written by two sequences and nothing is
    copied. A block that nobody holds keeps its name until its memory is needed; those freed longest ago go first.
    """

    def __init__(self, num_blocks: int, hasher: PrefixHasher, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = hasher.block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_queried_tokens = 0
        """Tokens of admitted sequences that were looked up in the prefix cache."""
        self.num_hit_tokens = 0
        """Those that were found."""
        self._hasher = hasher
        self._refs = [0] * num_blocks
        self._names: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        """Name -> block, held or not."""
        self._free_unnamed = list(range(num_blocks - 1, -1, -1))
        self._free_named: OrderedDict[int, None] = OrderedDict()
        """Blocks nobody holds that still carry a prefix; freed longest ago first."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks nobody holds."""
        return len(self._free_unnamed) + len(self._free_named)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, seq: Sequence) -> list[int]:
        """The cached blocks that `seq` starts with, taking no hold of them; at least one of its tokens is left out,
        since only computing a token gives its logits."""
        matched: list[int] = []
        if self.enable_prefix_caching:
            limit = (seq.num_tokens - 1) // self.block_size
            cached = self._cached
            for name in self._hasher.extend(seq, limit)[:limit]:
                block = cached.get(name)
                if block is None:
                    break
                matched.append(block)
        return matched

    def names_to_compute(self, seq: Sequence) -> list[bytes]:
        """Names of the full blocks of `seq` that are not computed yet; none without a prefix cache."""
        if not self.enable_prefix_caching:
            return []
        num_full = seq.num_tokens // self.block_size
        return self._hasher.extend(seq, num_full)[seq.num_computed_tokens // self.block_size : num_full]

    def num_blocks_to_take(self, seq: Sequence, matched: list[int]) -> int:
        """By how much `allocate` would lower `num_free_blocks`."""
        unheld = sum(1 for block in matched if not self._refs[block])
        return self.blocks_for(seq.num_tokens) - len(matched) + unheld

    def allocate(self, seq: Sequence, matched: list[int]) -> None:
        """Give `seq`, which holds nothing, room for all its tokens: `matched` (fresh from `match_prefix`), then empty
        blocks. Matched tokens count as computed. The caller has checked `num_blocks_to_take`."""
        assert not seq.block_table, f"{seq} holds blocks"
        for block in matched:
            self._hold(block)
        fresh = self.blocks_for(seq.num_tokens) - len(matched)
        seq.block_table = [*matched, *(self._take() for _ in range(fresh))]
        seq.num_computed_tokens = len(matched) * self.block_size
        self.num_queried_tokens += seq.num_tokens
        self.num_hit_tokens += seq.num_computed_tokens

    def needs_block(self, seq: Sequence) -> bool:
        """Whether the blocks of `seq` are too few for its tokens (by one: it grows a token a step)."""
        return len(seq.block_table) * self.block_size < len(seq.token_ids)

    def append(self, seq: Sequence) -> None:
        """Give `seq` one more block; there must be a free one."""
        seq.block_table.append(self._take())

    def commit(self, seq: Sequence, num_tokens: int) -> range:
        """Note that the next `num_tokens` tokens of `seq` are computed, and name the blocks they filled.

        Returns the indices, in the block table, of the blocks now full.
        """
        first = seq.num_computed_tokens // self.block_size
        seq.num_computed_tokens += num_tokens
        filled = range(first, seq.num_computed_tokens // self.block_size)
        if filled and self.enable_prefix_caching:
            names = self._hasher.extend(seq, filled.stop)
            for index in filled:
                self._name(seq.block_table[index], names[index])
        return filled

    def deallocate(self, seq: Sequence) -> None:
        """Let go of all blocks of `seq`. Named ones stay cached, the end of the prefix being the first to go."""
        for block in reversed(seq.block_table):
            self._refs[block] -= 1
            if not self._refs[block]:
                if self._names[block] is None:
                    self._free_unnamed.append(block)
                else:
                    self._free_named[block] = None
        seq.block_table = []
        seq.num_computed_tokens = 0

    def check_integrity(self, live: Iterable[Sequence]) -> None:
        """Assert that holds, free lists and names agree with the block tables of all `live` sequences."""
        held: Counter[int] = Counter()
        for seq in live:
            held.update(seq.block_table)
            assert len(set(seq.block_table)) == len(seq.block_table), f"{seq} holds a block twice"
            assert seq.num_computed_tokens <= len(seq.block_table) * self.block_size, (
                f"{seq} computed beyond its blocks"
            )
        assert self._refs == [held[block] for block in range(self.num_blocks)], "holds differ from block tables"
        free = [*self._free_unnamed, *self._free_named]
        assert sorted(free) == [block for block, refs in enumerate(self._refs) if not refs], "free blocks differ"
        assert all(self._names[block] is None for block in self._free_unnamed), "a cached block passes for empty"
        names = {name: block for block, name in enumerate(self._names) if name is not None}
        assert names == self._cached, "the prefix cache differs from the blocks' names"
        assert all(self._names[block] is not None for block in self._free_named), "an empty block passes for cached"

    def _hold(self, block: int) -> None:
        if not self._refs[block]:
            del self._free_named[block]
        self._refs[block] += 1

    def _take(self) -> int:
        """An empty block, held once; forgets the prefix freed longest ago where none is empty."""
        if self._free_unnamed:
            block = self._free_unnamed.pop()
        else:
            block, _ = self._free_named.popitem(last=False)
            name, self._names[block] = self._names[block], None
            assert name is not None, "a free cached block has a name"
            del self._cached[name]
        self._refs[block] = 1
        return block

    def _name(self, block: int, name: bytes) -> None:
        """Publish a full block. Where another block bears the name (two computed it at once), that one is kept."""
        if name not in self._cached:
            assert self._names[block] is None, "a block is filled once"
            self._cached[name] = block
            self._names[block] = name
