"""What the kernels' tests share: random adapters in slots, ragged batches over a paged cache, how equal is equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openlora_kernels import AttentionBatch, BlobLayout, LoraGroup, LoraTables, group_weights, huge_empty
from openlora_kernels.native import native

Ranks = Sequence[Sequence[int]]
"""ranks[g][j] of one adapter."""


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit where the native library works; to float32 rounding where torch does (it promises no more)."""
    if native():
        assert torch.equal(actual, expected), f"differs by {(actual - expected).abs().max():.3g}"
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class Adapters:
    """Random adapters in the slots of one set of tables; owns their memory."""

    def __init__(self, groups: Sequence[LoraGroup], ranks: Sequence[Ranks], dtype: torch.dtype, seed: int = 0) -> None:
        self.tables = LoraTables(groups, len(ranks), dtype)
        self._blobs = []
        for slot, adapter in enumerate(ranks):
            layout = BlobLayout.of(groups, adapter, dtype)
            blob = huge_empty(layout.nbytes)
            for index, group in enumerate(groups):
                weights = group_weights(blob, layout, group, index, dtype)
                base = seed + 1000 * slot + 10 * index
                weights.a.copy_(randn(base, *weights.a.shape) * group.in_features**-0.5)
                weights.scale.copy_(randn(base + 1, *weights.scale.shape).abs() + 0.1)
                for j, b in enumerate(weights.b):
                    b.copy_(randn(base + 2 + j, *b.shape))
            self.tables.set(slot, blob.data_ptr(), layout)
            self._blobs.append(blob)


@dataclass(frozen=True)
class Ragged:
    """A batch over a paged cache whose blocks lie in random order, and the caches with every key in place."""

    batch: AttentionBatch
    k_cache: Tensor
    v_cache: Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.batch.cu_seqlens_q[-1])

    def row(self, sequence: int, index: int) -> tuple[int, AttentionBatch]:
        """Query row `index` of a sequence: its number in the batch, and the batch of that row alone."""
        return self.rows(sequence, index, index + 1)

    def rows(self, sequence: int, begin: int, end: int) -> tuple[int, AttentionBatch]:
        """Query rows [begin, end) of a sequence as a batch of their own (a chunk)."""
        batch = self.batch
        first, last = (int(batch.cu_seqlens_q[sequence + i]) for i in (0, 1))
        length = int(batch.seq_lens[sequence]) - (last - first) + end
        return first + begin, AttentionBatch(
            cu_seqlens_q=torch.tensor([0, end - begin], dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
            block_tables=batch.block_tables[sequence : sequence + 1].contiguous(),
            slot_mapping=batch.slot_mapping[first + begin : first + end].contiguous(),
            positions=batch.positions[first + begin : first + end].contiguous(),
            block_size=batch.block_size,
            max_query_len=end - begin,
            max_seq_len=length,
        )


def ragged(
    seed: int, lengths: Sequence[int], queries: Sequence[int], *, kv_heads: int, head_dim: int, block_size: int
) -> Ragged:
    """Sequences of `lengths` tokens of which the last `queries` are in the batch. Unused cache memory is NaN."""
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 2
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
    tables = torch.zeros(len(lengths), max(counts, default=0) + 1, dtype=torch.int32)
    caches = [torch.full((num_blocks, block_size, kv_heads, head_dim), float("nan")) for _ in range(2)]
    used, slots, positions = 0, [], []
    for s, (length, count, query) in enumerate(zip(lengths, counts, queries, strict=True)):
        tables[s, :count] = order[used : used + count]
        used += count
        where = [int(tables[s, p // block_size]) * block_size + p % block_size for p in range(length)]
        for i, cache in enumerate(caches):
            cache.view(-1, kv_heads, head_dim)[where] = randn(seed + 7 * s + i, length, kv_heads, head_dim)
        slots += where[length - query :]
        positions += range(length - query, length)
    batch = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *queries]).cumsum(0).int(),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        block_size=block_size,
        max_query_len=max(queries, default=0),
        max_seq_len=max(lengths, default=0),
    )
    return Ragged(batch, *caches)
