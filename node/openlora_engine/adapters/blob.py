"""One adapter in memory: a single contiguous buffer in the kernels' layout, and where each target lies in it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from openlora_kernels.lora import BlobLayout

from .finite import Bits, bits_of
from .targets import LoraTargets

PAGE = mmap.PAGESIZE
SMALLEST_MAPPING = 1 << 16
"""Bytes. Buffers from here on are mappings of their own, so that an evicted one goes back to the system at once."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where an adapter of these ranks has its weights. Shared by all adapters of one shape.

    ranks[t], a[t], b[t]: rank of target t, and the first element (not byte) of its A [r, K] and B^T [r, N]; 0 where
    the rank is 0.
    """

    layout: BlobLayout
    ranks: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    regions: tuple[tuple[int, int], ...]
    """(first element, count) of the stretches that hold weights; between them lie scales and padding."""

    @property
    def nbytes(self) -> int:
        """Size of the buffer."""
        return self.layout.nbytes

    @property
    def max_rank(self) -> int:
        """Highest rank of a target."""
        return max(self.ranks, default=0)


@dataclass(frozen=True)
class Storage:
    """How adapters of one base are stored: for which targets, in which dtype, up to which rank and file size."""

    targets: LoraTargets
    dtype: torch.dtype
    max_lora_rank: int = 256
    max_file_bytes: int = 2 << 30
    pinned: bool = False
    """Page-locked, so that the copy to a CUDA device is asynchronous."""

    def place(self, ranks: tuple[int, ...]) -> Placement:
        """The placement of an adapter that has `ranks[t]` at target t."""
        return _place(self.targets, self.dtype, ranks)

    def allocate(self, placement: Placement) -> Blob:
        """A buffer for an adapter, weights undefined."""
        return Blob(placement, self.dtype, allocate(placement.nbytes, pinned=self.pinned))

    def allocated_bytes(self, nbytes: int) -> int:
        """What a buffer of `nbytes` really takes."""
        if self.pinned:
            return 1 << max(nbytes - 1, 0).bit_length()  # torch's host allocator rounds up to powers of two
        return -(-nbytes // PAGE) * PAGE if nbytes >= SMALLEST_MAPPING else nbytes


@dataclass(frozen=True, eq=False)
class Blob:
    """An adapter's weights: uint8 [nbytes], 64-byte aligned. Written once, before anyone else sees it."""

    placement: Placement
    dtype: torch.dtype
    data: Tensor

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.data.data_ptr()

    @property
    def bits(self) -> Bits:
        """The buffer as unsigned integers of the elements' size; placements count in these."""
        return bits_of(self.data.numpy(), self.dtype)

    @property
    def elements(self) -> Tensor:
        """The buffer as elements of `dtype`."""
        return self.data.view(self.dtype)

    def a(self, targets: LoraTargets, t: int) -> Tensor:
        """lora_A of target t: [r, K], a view."""
        return self._view(self.placement.a[t], self.placement.ranks[t], targets.items[t].in_features)

    def b(self, targets: LoraTargets, t: int) -> Tensor:
        """lora_B of target t, transposed: [r, N], a view."""
        return self._view(self.placement.b[t], self.placement.ranks[t], targets.items[t].out_features)

    def rank_scales(self) -> npt.NDArray[np.float32]:
        """What each rank's activation is multiplied with: float32 [sum of ranks], target by target, a copy."""
        buffer = self.data.numpy()
        parts = [buffer[first : first + 4 * total] for first, total in self._scale_regions()]
        return np.concatenate([np.empty(0, np.uint8), *parts]).view(np.float32)

    def write_rank_scales(self, scales: npt.NDArray[np.float32]) -> None:
        """Set them."""
        buffer, start = self.data.numpy(), 0
        for first, total in self._scale_regions():
            buffer[first : first + 4 * total] = scales[start : start + total].view(np.uint8)
            start += total

    def write_scales(self, scales: Sequence[float]) -> None:
        """Set scales[t] for every rank of target t."""
        self.write_rank_scales(np.repeat(np.asarray(scales, np.float32), self.placement.ranks))

    def _scale_regions(self) -> list[tuple[int, int]]:
        layout = self.placement.layout
        return list(zip(layout.scale.tolist(), layout.ranks.sum(1).tolist(), strict=True))

    def _view(self, first: int, rank: int, features: int) -> Tensor:
        return self.elements[first : first + rank * features].view(rank, features)


def allocate(nbytes: int, *, pinned: bool = False) -> Tensor:
    """uint8 [nbytes], 64-byte aligned, contents undefined."""
    if pinned:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    if nbytes < SMALLEST_MAPPING:
        return torch.empty(nbytes, dtype=torch.uint8)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)


@lru_cache(maxsize=256)
def _place(targets: LoraTargets, dtype: torch.dtype, ranks: tuple[int, ...]) -> Placement:
    layout = BlobLayout.of(targets.groups, targets.ranks_by_group(ranks), dtype)
    a, b, regions = [], [], []
    t = 0
    for g, group in enumerate(targets.groups):
        row = ranks[t : t + group.num_targets]
        first_a, first_b = (int(offsets[g]) // dtype.itemsize for offsets in (layout.a, layout.b))
        a += [first_a + before * group.in_features for before in accumulate((0, *row[:-1]))]
        sizes = [rank * features for rank, features in zip(row, group.out_features, strict=True)]
        b += [first_b + before for before in accumulate((0, *sizes[:-1]))]
        if sum(row):
            regions += [(first_a, sum(row) * group.in_features), (first_b, sum(sizes))]
        t += group.num_targets
    return Placement(layout, ranks, tuple(a), tuple(b), tuple(regions))
