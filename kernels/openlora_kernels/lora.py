"""y += scale * (x A^T) B^T for the rows of a batch, each under its own adapter (SGMV of Punica, arXiv 2310.18547).

One call serves one fused projection: its targets (q, k, v or gate, up) share the input, so A is stacked over them.
Ranks are real: no padding to a common rank, an absent target has rank 0. Knows no model and no adapter file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .native import INT, POINTER, function, num_threads, takes

ALIGNMENT = 64
"""Bytes: A, B and the scales of each group begin on a cache line within a blob."""

STORAGE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What adapters may be stored as; the index is csrc/lora.h's code."""


@dataclass(frozen=True)
class LoraGroup:
    """One fused projection: targets that share the input; target j writes columns [sum(N_<j), sum(N_<=j)) of y."""

    in_features: int
    out_features: tuple[int, ...]

    @property
    def num_targets(self) -> int:
        """J."""
        return len(self.out_features)

    @property
    def columns(self) -> tuple[int, ...]:
        """First column of each target in y, and the width of y: [J + 1]."""
        return (0, *accumulate(self.out_features))


@dataclass(frozen=True)
class BlobLayout:
    """Where one adapter's weights lie in its contiguous buffer: byte offsets per group, and its real ranks.

    a, b, scale: int64 [G], 64-byte aligned, meaningless where the group's total rank is 0. ranks: int32 [G, J_max].
    At a[g]: A [R, K]. At b[g]: B_0^T [r_0, N_0], then B_1^T [r_1, N_1] and so on. At scale[g]: float32 [R].
    """

    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    scale: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int32]
    nbytes: int

    @classmethod
    def of(cls, groups: Sequence[LoraGroup], ranks: Sequence[Sequence[int]], dtype: torch.dtype) -> BlobLayout:
        """Lay out an adapter with `ranks[g][j]` (0 = absent). Raises ValueError where ranks do not match the groups."""
        if len(ranks) != len(groups):
            raise ValueError(f"{len(ranks)} rows of ranks for {len(groups)} groups")
        table = np.zeros((len(groups), _max_targets(groups)), np.int32)
        offsets = np.zeros((3, len(groups)), np.int64)
        end = 0
        for g, (group, row) in enumerate(zip(groups, ranks, strict=True)):
            if len(row) != group.num_targets or min(row) < 0:
                raise ValueError(f"group {g} has {group.num_targets} targets, its ranks are {tuple(row)}")
            table[g, : len(row)] = row
            elements = (sum(row) * group.in_features, _b_elements(row, group))
            for i, nbytes in enumerate((*(n * dtype.itemsize for n in elements), sum(row) * 4)):
                offsets[i, g] = end
                end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cls(offsets[0], offsets[1], offsets[2], table, end)


@dataclass(frozen=True)
class GroupWeights:
    """One adapter's weights in one group, as views: a [R, K], b[j] [r_j, N_j], scale float32 [R]."""

    a: Tensor
    b: tuple[Tensor, ...]
    scale: Tensor


def group_weights(blob: Tensor, layout: BlobLayout, group: LoraGroup, index: int, dtype: torch.dtype) -> GroupWeights:
    """Views into a blob (uint8 [nbytes], any device) of group number `index`: for writing it and for reading it."""
    ranks = [int(r) for r in layout.ranks[index, : group.num_targets]]
    total = sum(ranks)
    a = _view(blob, int(layout.a[index]), total * group.in_features, dtype).view(total, group.in_features)
    flat = _view(blob, int(layout.b[index]), _b_elements(ranks, group), dtype)
    return GroupWeights(a, _by_target(flat, ranks, group), _view(blob, int(layout.scale[index]), total, torch.float32))


class LoraTables:
    """For a whole model: where each slot's weights lie, per group.

    a, b, scale: int64 [G, S] addresses on `device` (0 = absent). ranks: int32 [G, S, J_max]. The tables hold addresses
    only: whoever sets a slot keeps its memory alive and unchanged until the slot is cleared.
    """

    def __init__(
        self, groups: Sequence[LoraGroup], num_slots: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.groups = tuple(groups)
        self.num_slots = num_slots
        self.dtype = dtype
        self.device = torch.device(device)
        if dtype not in STORAGE_DTYPES:
            raise ValueError(f"adapters cannot be stored as {dtype}")
        self.a, self.b, self.scale = (torch.zeros(len(groups), num_slots, dtype=torch.int64) for _ in range(3))
        self.ranks = torch.zeros(len(groups), num_slots, _max_targets(groups), dtype=torch.int32)
        self.host_ranks = self.ranks.numpy() if self.device.type == "cpu" else self.ranks.numpy().copy()
        if self.device.type != "cpu":
            self.a, self.b, self.scale, self.ranks = (
                table.to(self.device) for table in (self.a, self.b, self.scale, self.ranks)
            )
        self._native = [_NativeGroup.of(self, g) for g in range(len(groups))] if self.device.type == "cpu" else []

    def set(self, slot: int, base: int, layout: BlobLayout) -> None:
        """Point a slot at a blob whose first byte is at address `base`. Raises ValueError for other groups."""
        if layout.ranks.shape != (len(self.groups), self.host_ranks.shape[2]):
            raise ValueError("the blob was laid out for other groups than these tables")
        present = layout.ranks.sum(1) > 0
        for table, offsets in ((self.a, layout.a), (self.b, layout.b), (self.scale, layout.scale)):
            table[:, slot] = torch.from_numpy(np.where(present, base + offsets, 0)).to(self.device)
        self.host_ranks[:, slot] = layout.ranks
        if self.device.type != "cpu":
            self.ranks[:, slot] = torch.from_numpy(layout.ranks).to(self.device)

    def clear(self, slot: int) -> None:
        """Empty a slot: rows that still name it get no LoRA."""
        self.host_ranks[:, slot] = 0
        for table in (self.a, self.b, self.scale, self.ranks):
            table[:, slot] = 0

    def weights(self, group: int, slot: int) -> GroupWeights | None:
        """Views of one slot's weights in one group, None where it has none. Reads addresses back: not for hot paths."""
        ranks = [int(r) for r in self.host_ranks[group, slot, : self.groups[group].num_targets]]
        if not sum(ranks):
            return None
        shape = self.groups[group]
        a = _at(int(self.a[group, slot]), sum(ranks) * shape.in_features, self.dtype, self.device)
        flat = _at(int(self.b[group, slot]), _b_elements(ranks, shape), self.dtype, self.device)
        scale = _at(int(self.scale[group, slot]), sum(ranks), torch.float32, self.device)
        return GroupWeights(a.view(sum(ranks), shape.in_features), _by_target(flat, ranks, shape), scale)

    def native_group(self, group: int) -> int:
        """Address of the C description of a group (CPU)."""
        return ctypes.addressof(self._native[group])


@dataclass(frozen=True)
class Segments:
    """Rows of the batch grouped by slot: rows[offsets[s] : offsets[s + 1]] use slots[s]. Others get no LoRA.

    rows: int32 [n]; offsets: int32 [S + 1]; slots: int32 [S]; contiguous, on the batch's device. A row occurs at most
    once.
    """

    rows: Tensor
    offsets: Tensor
    slots: Tensor

    @classmethod
    def of(cls, segments: Iterable[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> Segments:
        """From (slot, rows) pairs."""
        pairs = [(slot, rows) for slot, rows in segments if len(rows)]
        offsets = [0, *accumulate(len(rows) for _, rows in pairs)]
        rows = [row for _, part in pairs for row in part]
        columns = (rows, offsets, [slot for slot, _ in pairs])
        return cls(*(torch.tensor(column, dtype=torch.int32).to(device) for column in columns))


def lora_apply_(y: Tensor, x: Tensor, segments: Segments, tables: LoraTables, group: int) -> None:
    """y [T, sum N] += the adapters' contribution for x [T, K], in place; last dims contiguous, row strides free.

    CPU: float32 x and y, weights as `tables.dtype`, float32 accumulation. A row's result is bit-equal whatever else is
    in the batch (native path). Raises ValueError where shapes do not match the group or an index is out of range.
    """
    shape = tables.groups[group]
    if x.shape[1] != shape.in_features or y.shape[1] != shape.columns[-1] or x.shape[0] != y.shape[0]:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} do not fit group {group}: {shape}")
    if segments.slots.shape[0] == 0:
        return
    if x.is_cuda:
        from . import triton_lora

        triton_lora.lora_apply_(y, x, segments, tables, group)
    elif takes(x, y):
        _apply_native(y, x, segments, tables, group)
    else:
        reference(y, x, segments, tables, group)


def reference(y: Tensor, x: Tensor, segments: Segments, tables: LoraTables, group: int) -> None:
    """The specification: a loop over segments and targets, on any device."""
    offsets = segments.offsets.tolist()
    columns = tables.groups[group].columns
    for s, slot in enumerate(segments.slots.tolist()):
        weights = tables.weights(group, slot)
        if weights is None:
            continue
        rows = segments.rows[offsets[s] : offsets[s + 1]].long()
        shrunk = (x[rows].float() @ weights.a.float().T) * weights.scale
        start = 0
        for j, b in enumerate(weights.b):
            if b.shape[0]:
                delta = shrunk[:, start : start + b.shape[0]] @ b.float()
                y[:, columns[j] : columns[j + 1]].index_add_(0, rows, delta.to(y.dtype))
            start += b.shape[0]


class _NativeGroup(ctypes.Structure):
    """csrc/lora.h: LoraGroup. Points into the tables, so `set` and `clear` are seen at once."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "scale", "ranks", "out_features")),
        *((name, INT) for name in ("in_features", "num_targets", "ranks_stride", "num_slots", "dtype")),
    )

    @classmethod
    def of(cls, tables: LoraTables, group: int) -> _NativeGroup:
        shape = tables.groups[group]
        outs = (ctypes.c_int64 * shape.num_targets)(*shape.out_features)
        addresses = [table[group].data_ptr() for table in (tables.a, tables.b, tables.scale, tables.ranks)]
        self = cls(
            *addresses,
            ctypes.addressof(outs),
            shape.in_features,
            shape.num_targets,
            tables.ranks.shape[2],
            tables.num_slots,
            STORAGE_DTYPES.index(tables.dtype),
        )
        self.keep = outs
        return self


_lora_apply = function("ol_lora_apply", *[POINTER, INT] * 2, *[POINTER] * 4, *[INT] * 3)


def _apply_native(y: Tensor, x: Tensor, segments: Segments, tables: LoraTables, group: int) -> None:
    _lora_apply(
        *(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0)),
        *(segments.rows.data_ptr(), segments.offsets.data_ptr(), segments.slots.data_ptr()),
        *(tables.native_group(group), segments.slots.shape[0], x.shape[0], num_threads()),
    )


def _max_targets(groups: Sequence[LoraGroup]) -> int:
    return max((group.num_targets for group in groups), default=1)


def _b_elements(ranks: Sequence[int], group: LoraGroup) -> int:
    return sum(r * n for r, n in zip(ranks, group.out_features, strict=True))


def _by_target(flat: Tensor, ranks: Sequence[int], group: LoraGroup) -> tuple[Tensor, ...]:
    parts, start = [], 0
    for r, n in zip(ranks, group.out_features, strict=True):
        parts.append(flat[start : start + r * n].view(r, n))
        start += r * n
    return tuple(parts)


def _view(blob: Tensor, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    return blob[offset : offset + count * dtype.itemsize].view(dtype)


def _at(address: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A flat tensor over memory that someone else owns."""
    nbytes = count * dtype.itemsize
    if nbytes == 0:
        return torch.empty(0, dtype=dtype, device=device)
    if device.type == "cpu":
        return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=dtype)
    return torch.as_tensor(_CudaBytes(address, nbytes), device=device).view(dtype)


class _CudaBytes:
    """An address as torch.as_tensor reads it."""

    def __init__(self, address: int, nbytes: int) -> None:
        interface: dict[str, Any] = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = interface
