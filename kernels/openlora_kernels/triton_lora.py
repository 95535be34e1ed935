"""LoRA on CUDA: chooses tiles and launches the Triton kernels, one shrink and one expand a fused projection.

Decode (about one row a segment) takes the matrix-vector form (BGMV), longer segments the tensor-core form (SGMV); both
are the same two kernels with another BLOCK_M. A long K is split over programs that each write a partial sum, and expand
adds the partials in order: no atomics, so a result depends on its inputs and its tiles alone. Ranks are looped over as
they are; a slot without weights costs one load.

CUDA graphs: the grid is (ceil(n / BLOCK_M) + S, ...) for n = len(rows) and S = len(slots), an upper bound of the row
blocks whatever the segments' lengths, and no value is read on the host. So a captured step stays valid while the index
tensors keep their shapes (pad `slots` to the most slots of a batch, repeat the last offset, leave spare rows unused)
and `rank_capacity` does not grow; capture again when it does.

Not run on a device yet: checked against `lora.reference` in Triton's interpreter and compiled for sm_80 and sm_90
(openlora_kernels.aot). Tile sizes are reasoned, not tuned.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .lora import LoraTables, Segments

MISSING = "LoRA on CUDA needs triton: pip install 'openlora-node[cuda]' (or triton>=3.2)"


@dataclass(frozen=True)
class Tiles:
    """Block sizes of one launch. BLOCK_M 1 is the matrix-vector form."""

    block_m: int
    block_n: int
    block_k: int
    block_r: int
    split_k: int
    num_warps: int
    num_stages: int


DECODE = Tiles(block_m=1, block_n=128, block_k=256, block_r=16, split_k=8, num_warps=4, num_stages=2)
MIXED = Tiles(block_m=16, block_n=128, block_k=64, block_r=32, split_k=4, num_warps=4, num_stages=3)
PREFILL = Tiles(block_m=64, block_n=64, block_k=64, block_r=32, split_k=1, num_warps=4, num_stages=3)
BUCKETS = (DECODE, MIXED, PREFILL)


def tiles_for(num_rows: int, num_segments: int) -> Tiles:
    """By the mean length of a segment, the only thing about lengths that the host knows without asking the device."""
    mean = num_rows / num_segments
    if mean <= 2:
        return DECODE
    return MIXED if mean <= 32 else PREFILL


def rank_capacity(tables: LoraTables, group: int) -> int:
    """Width of the hidden buffer: the highest total rank of a slot in this group, rounded up to a power of two."""
    highest = int(tables.host_ranks[group].sum(1).max(initial=0))
    return max(16, 1 << (highest - 1).bit_length()) if highest else 0


@lru_cache(1024)
def shrink_constants(
    in_features: int, num_targets: int, weight: torch.dtype, x: torch.dtype, tiles: Tiles
) -> dict[str, Any]:
    """Compile-time arguments of `shrink` but BLOCK_S. Not to be changed: the same dictionary is handed out again."""
    import triton.language as tl  # type: ignore[import-untyped]

    dot = _tl(weight) if weight == x else tl.float32
    return {
        "K": in_features,
        "NUM_TARGETS": num_targets,
        "WEIGHT": _tl(weight),
        "DOT": dot,
        "PRECISION": _precision(weight, x),
        "BLOCK_M": tiles.block_m,
        "BLOCK_K": tiles.block_k,
        "BLOCK_R": tiles.block_r,
        "SPLIT_K": _split_k(in_features, tiles),
    }


@lru_cache(1024)
def expand_constants(
    out_features: tuple[int, ...], y_stride: int, in_features: int, weight: torch.dtype, y: torch.dtype, tiles: Tiles
) -> dict[str, Any]:
    """Compile-time arguments of `expand` but BLOCK_S."""
    return {
        "OUT_FEATURES": out_features,
        "NUM_TARGETS": len(out_features),
        "DIVISOR": math.gcd(16, y_stride, *out_features),
        "WEIGHT": _tl(weight),
        "PRECISION": _precision(weight, y),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_R": tiles.block_r,
        "SPLIT_K": _split_k(in_features, tiles),
    }


def lora_apply_(y: Tensor, x: Tensor, segments: Segments, tables: LoraTables, group: int) -> None:
    """y [T, sum N] += scale * (x A^T) B^T for the segments' rows, x [T, K]; see lora.lora_apply_, which checks shapes.

    float16, bfloat16 or float32 x and y (last dims contiguous), weights as `tables.dtype`, float32 accumulation. Slots'
    base addresses are multiples of 64. Indices are trusted: checking them would wait for the device. How a row rounds
    depends on its bucket of tiles, not on its neighbours' values.
    Raises ModuleNotFoundError without triton, saying what to install.
    """
    kernels = triton_kernels()
    capacity = rank_capacity(tables, group)
    num_rows, num_segments = segments.rows.shape[0], segments.slots.shape[0]
    if capacity == 0 or num_rows == 0:
        return
    shape = tables.groups[group]
    tiles = tiles_for(num_rows, num_segments)
    block_s = 1 << (num_segments - 1).bit_length()
    row_blocks = -(-num_rows // tiles.block_m) + num_segments
    down = shrink_constants(shape.in_features, shape.num_targets, tables.dtype, x.dtype, tiles)
    up = expand_constants(shape.out_features, y.stride(0), shape.in_features, tables.dtype, y.dtype, tiles)
    hidden = torch.empty(down["SPLIT_K"], num_rows, capacity, dtype=torch.float32, device=x.device)
    launch = {"BLOCK_S": block_s, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    index = (segments.rows, segments.offsets, segments.slots)
    kernels.shrink[row_blocks, down["SPLIT_K"]](
        *(x, hidden, *index, tables.a[group], tables.scale[group], tables.ranks[group]),
        *(num_segments, x.stride(0), capacity, num_rows * capacity, tables.ranks.stride(1)),
        **down,
        **launch,
    )
    kernels.expand[row_blocks, sum(-(-n // tiles.block_n) for n in shape.out_features)](
        *(y, hidden, *index, tables.b[group], tables.ranks[group]),
        *(num_segments, y.stride(0), capacity, num_rows * capacity, tables.ranks.stride(1)),
        **up,
        **launch,
    )


@cache
def triton_kernels() -> ModuleType:
    """The module with the device code. Raises ModuleNotFoundError without triton."""
    try:
        return importlib.import_module(".triton_kernels", __package__)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING, name=error.name) from error


def _split_k(in_features: int, tiles: Tiles) -> int:
    """A power of two, and no program without work."""
    return min(tiles.split_k, 1 << (max(in_features // tiles.block_k, 1).bit_length() - 1))


def _precision(weight: torch.dtype, activation: torch.dtype) -> str:
    """TF32 holds every bfloat16 and float16 mantissa; float32 models keep float32."""
    return "ieee" if torch.float32 in (weight, activation) else "tf32"


def _tl(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]
