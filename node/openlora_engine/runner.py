"""The one class that knows tensors: turns a schedule into a batch, runs the model, owns the KV cache. No policy."""

from __future__ import annotations

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openlora_kernels import AttentionBatch, LoraTables, Segments, huge_empty

from .models.context import ForwardContext
from .models.loading import KVGeometry, LoadedModel
from .scheduling.schedule import ScheduledChunk

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class BatchArrays:
    """A flattened batch as numpy arrays: T tokens of S sequences, R rows whose logits are wanted."""

    token_ids: Int64
    positions: Int64
    slot_mapping: Int64
    cu_seqlens_q: Int32
    seq_lens: Int32
    block_tables: Int32
    logits_indices: Int64
    segment_rows: Int32
    segment_offsets: Int32
    segment_slots: Int32


def batch_arrays(chunks: Ordered[ScheduledChunk], block_size: int) -> BatchArrays:
    """Lay out a schedule's chunks, in their order. Chunks of one slot stand together (the scheduler sorts them)."""
    lengths = [chunk.num_tokens for chunk in chunks]
    cu_seqlens = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    token_ids = np.empty(total, np.int64)
    positions = np.empty(total, np.int64)
    slot_mapping = np.empty(total, np.int64)
    width = max(len(chunk.seq.block_table) for chunk in chunks)
    block_tables = np.zeros((len(chunks), width), np.int32)
    seq_lens = np.empty(len(chunks), np.int32)
    slots: list[int] = []
    boundaries: list[int] = []
    logits_indices: list[int] = []
    for number, chunk in enumerate(chunks):
        seq = chunk.seq
        begin, end = int(cu_seqlens[number]), int(cu_seqlens[number + 1])
        start = seq.num_computed_tokens
        block_tables[number, : len(seq.block_table)] = seq.block_table
        token_ids[begin:end] = seq.token_ids[start : start + chunk.num_tokens]
        positions[begin:end] = np.arange(start, start + chunk.num_tokens)
        at = positions[begin:end]
        slot_mapping[begin:end] = block_tables[number, at // block_size] * block_size + at % block_size
        seq_lens[number] = start + chunk.num_tokens
        if chunk.samples:
            logits_indices.append(end - 1)
        if seq.slot is not None:
            if not slots or slots[-1] != seq.slot or boundaries[-1] != begin:
                slots.append(seq.slot)
                boundaries.extend((begin, end))
            else:
                boundaries[-1] = end
    starts, ends = boundaries[::2], boundaries[1::2]
    rows = [np.arange(begin, end, dtype=np.int32) for begin, end in zip(starts, ends, strict=True)]
    offsets = np.zeros(len(slots) + 1, np.int32)
    np.cumsum([len(part) for part in rows], out=offsets[1:])
    return BatchArrays(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        cu_seqlens_q=cu_seqlens,
        seq_lens=seq_lens,
        block_tables=block_tables,
        logits_indices=np.array(logits_indices, np.int64),
        segment_rows=np.concatenate(rows) if rows else np.empty(0, np.int32),
        segment_offsets=offsets,
        segment_slots=np.array(slots, np.int32),
    )


class ModelRunner:
    """Owns the KV cache and runs schedules on the model.

    Not thread-safe: the engine's thread alone calls it.
    """

    def __init__(self, model: LoadedModel, num_blocks: int, block_size: int, tables: LoraTables | None) -> None:
        self.model = model
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._tables = tables
        self._kv_caches = [self._allocate(layer, num_blocks) for layer in model.kv_layers]

    def _allocate(self, layer: KVGeometry, num_blocks: int) -> tuple[Tensor, Tensor]:
        shape = (num_blocks, self.block_size, layer.num_kv_heads, layer.head_dim)
        dtype, device = self.model.dtype, self.model.device
        if device.type == "cuda":
            return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        # Fresh pages are zero: memory is taken when a block is first written, not here.
        nbytes = math.prod(shape) * dtype.itemsize
        return huge_empty(nbytes).view(dtype).view(shape), huge_empty(nbytes).view(dtype).view(shape)

    def forward(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        """Run one step. Returns fp32 logits [R, V], one row for each chunk that samples, in order."""
        arrays = batch_arrays(chunks, self.block_size)
        segments = None
        if len(arrays.segment_slots) and self._tables is not None:
            segments = Segments(
                self._to_device(arrays.segment_rows),
                self._to_device(arrays.segment_offsets),
                self._to_device(arrays.segment_slots),
            )
        batch = AttentionBatch(
            cu_seqlens_q=self._to_device(arrays.cu_seqlens_q),
            seq_lens=self._to_device(arrays.seq_lens),
            block_tables=self._to_device(arrays.block_tables),
            slot_mapping=self._to_device(arrays.slot_mapping),
            positions=self._to_device(arrays.positions),
            block_size=self.block_size,
            max_query_len=max(chunk.num_tokens for chunk in chunks),
            max_seq_len=int(arrays.seq_lens.max()),
        )
        context = ForwardContext(batch, self._kv_caches, segments, self._tables)
        logits_indices = self._to_device(arrays.logits_indices)
        return self.model.forward(self._to_device(arrays.token_ids), logits_indices, context)

    def _to_device(self, array: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.model.device, non_blocking=True)
