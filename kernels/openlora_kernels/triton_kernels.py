"""Device code of the LoRA kernels for CUDA: shrink and expand of SGMV (Punica, arXiv 2310.18547). Needs triton.

Kept apart from triton_lora.py, which chooses tiles and launches, so that everything else imports without triton.
Addresses come from int64 tables and are 64-byte aligned (BlobLayout); the hints that say so make loads 16 bytes wide.

A program owns one *row block*: up to BLOCK_M consecutive positions of one segment. Row blocks are numbered over all
segments without gaps; which one a program owns it finds from `offsets` alone, so the grid depends on the lengths of
the index tensors and never on their values.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, possibly-undefined"
from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def _row_block(pid, offsets, num_segments, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr):  # noqa: N803
    """Segment of row block `pid`, its first position and the segment's end. Past the last block the segment is S."""
    index = tl.arange(0, BLOCK_S)
    present = index < num_segments
    starts = tl.load(offsets + index, mask=present, other=0)
    ends = tl.load(offsets + index + 1, mask=present, other=0)
    blocks = (ends - starts + BLOCK_M - 1) // BLOCK_M
    before = tl.cumsum(blocks, 0) <= pid
    segment = tl.sum((before & present).to(tl.int32))
    first = pid - tl.sum(tl.where(before & present, blocks, 0))
    start = tl.load(offsets + segment)
    end = tl.load(offsets + tl.minimum(segment + 1, num_segments))
    return segment, start + first * BLOCK_M, end


@triton.jit(do_not_specialize=["num_segments"])
def shrink(
    x,  # [T, K] row stride x_stride
    hidden,  # float32 [SPLIT_K, n, hidden_stride]
    rows,  # int32 [n]
    offsets,  # int32 [S + 1]
    slots,  # int32 [S]
    a_table,  # int64 [slots] of this group; likewise scale_table
    scale_table,
    ranks,  # int32 [slots, ranks_stride] of this group
    num_segments,  # S
    x_stride,
    hidden_stride,
    split_stride,  # n * hidden_stride
    ranks_stride,
    K: tl.constexpr,  # noqa: N803
    NUM_TARGETS: tl.constexpr,  # noqa: N803
    WEIGHT: tl.constexpr,  # noqa: N803 - storage dtype of A
    DOT: tl.constexpr,  # noqa: N803 - dtype in which x and A are multiplied
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    BLOCK_R: tl.constexpr,  # noqa: N803
    BLOCK_S: tl.constexpr,  # noqa: N803
    SPLIT_K: tl.constexpr,  # noqa: N803
):
    """hidden[split, p, r] = scale[r] * sum over the split's k of x[rows[p], k] * A[r, k], for the slot's real ranks."""
    segment, first, end = _row_block(tl.program_id(0), offsets, num_segments, BLOCK_M, BLOCK_S)
    split = tl.program_id(1)
    if segment >= num_segments:
        return
    slot = tl.load(slots + segment)
    address = tl.load(a_table + slot)
    if address == 0:
        return
    rank = 0
    for j in tl.static_range(NUM_TARGETS):
        rank += tl.load(ranks + slot * ranks_stride + j)
    a = tl.multiple_of(address.to(tl.pointer_type(WEIGHT)), 64)
    scale = tl.multiple_of(tl.load(scale_table + slot).to(tl.pointer_type(tl.float32)), 64)
    position = first + tl.arange(0, BLOCK_M)
    row = tl.load(rows + position, mask=position < end, other=0).to(tl.int64)
    x_row = x + row * x_stride
    out = hidden + split * split_stride + position.to(tl.int64) * hidden_stride
    offset_k = tl.arange(0, BLOCK_K)
    for r in range(0, rank, BLOCK_R):
        offset_r = r + tl.arange(0, BLOCK_R)
        a_row = a + offset_r.to(tl.int64) * K
        if BLOCK_M == 1:
            # One row: a matrix-vector product, reduced once after the loop. Tensor cores would be fed 15 empty rows.
            products = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
            for k in range(split * BLOCK_K, K, SPLIT_K * BLOCK_K):
                column = k + offset_k
                inside = (offset_r < rank)[:, None] & (column < K)[None, :]
                weight = tl.load(a_row[:, None] + column[None, :], mask=inside, other=0.0)
                value = tl.load(x_row[:, None] + column[None, :], mask=(column < K)[None, :], other=0.0)
                products += weight.to(tl.float32) * value.to(tl.float32)
            total = tl.sum(products, 1)[None, :]
        else:
            total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for k in range(split * BLOCK_K, K, SPLIT_K * BLOCK_K):
                column = k + offset_k
                weight = tl.load(
                    a_row[None, :] + column[:, None],
                    mask=(offset_r < rank)[None, :] & (column < K)[:, None],
                    other=0.0,
                )
                value = tl.load(
                    x_row[:, None] + column[None, :],
                    mask=(position < end)[:, None] & (column < K)[None, :],
                    other=0.0,
                )
                total = tl.dot(value.to(DOT), weight.to(DOT), total, input_precision=PRECISION)
        total *= tl.load(scale + offset_r, mask=offset_r < rank, other=0.0)[None, :]
        tl.store(out[:, None] + offset_r[None, :], total, mask=(position < end)[:, None] & (offset_r < rank)[None, :])


@triton.jit
def _target(pid, ranks, OUT_FEATURES: tl.constexpr, NUM_TARGETS: tl.constexpr, BLOCK_N: tl.constexpr):  # noqa: N803
    """Target of column block `pid`: width, rank, first rank, first column, elements of B before it, block in it."""
    width, rank, first_rank, first_column, skipped, block = 0, 0, 0, 0, 0, 0
    rank_before, column_before, skipped_before, block_before = 0, 0, 0, 0
    for j in tl.static_range(NUM_TARGETS):
        r = tl.load(ranks + j)
        blocks = (OUT_FEATURES[j] + BLOCK_N - 1) // BLOCK_N
        mine = (pid >= block_before) & (pid < block_before + blocks)
        width = tl.where(mine, OUT_FEATURES[j], width)
        rank = tl.where(mine, r, rank)
        first_rank = tl.where(mine, rank_before, first_rank)
        first_column = tl.where(mine, column_before, first_column)
        skipped = tl.where(mine, skipped_before, skipped)
        block = tl.where(mine, pid - block_before, block)
        rank_before += r
        column_before += OUT_FEATURES[j]
        skipped_before += r * OUT_FEATURES[j]
        block_before += blocks
    return width, rank, first_rank, first_column, skipped, block


@triton.jit(do_not_specialize=["num_segments"])
def expand(
    y,  # [T, sum N] row stride y_stride
    hidden,  # float32 [SPLIT_K, n, hidden_stride]
    rows,
    offsets,
    slots,
    b_table,
    ranks,
    num_segments,
    y_stride,
    hidden_stride,
    split_stride,
    ranks_stride,
    OUT_FEATURES: tl.constexpr,  # noqa: N803 - (N_0, N_1, ...)
    NUM_TARGETS: tl.constexpr,  # noqa: N803
    DIVISOR: tl.constexpr,  # noqa: N803 - of every N_j and of y_stride, at most 16: lets loads be wide
    WEIGHT: tl.constexpr,  # noqa: N803 - storage dtype of B
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_R: tl.constexpr,  # noqa: N803
    BLOCK_S: tl.constexpr,  # noqa: N803
    SPLIT_K: tl.constexpr,  # noqa: N803
):
    """y[rows[p], columns of j] += (sum over splits of hidden[split, p, ranks of j]) B_j; axis 1: blocks of all j."""
    segment, first, end = _row_block(tl.program_id(0), offsets, num_segments, BLOCK_M, BLOCK_S)
    if segment >= num_segments:
        return
    slot = tl.load(slots + segment)
    address = tl.load(b_table + slot)
    if address == 0:
        return
    width, rank, first_rank, first_column, skipped, block = _target(
        tl.program_id(1), ranks + slot * ranks_stride, OUT_FEATURES, NUM_TARGETS, BLOCK_N
    )
    if rank == 0:
        return
    width = tl.multiple_of(width, DIVISOR)
    b = tl.multiple_of(address.to(tl.pointer_type(WEIGHT)), 64) + tl.multiple_of(skipped, DIVISOR)
    position = first + tl.arange(0, BLOCK_M)
    row = tl.load(rows + position, mask=position < end, other=0).to(tl.int64)
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    if BLOCK_M == 1:
        products = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for r0 in range(0, rank, BLOCK_R):
        offset_r = r0 + tl.arange(0, BLOCK_R)
        source = hidden + position.to(tl.int64)[:, None] * hidden_stride + (first_rank + offset_r)[None, :]
        if BLOCK_M == 1:
            # All partial sums in one load, a row a split.
            part = tl.arange(0, SPLIT_K)[:, None] * split_stride
            value = tl.sum(tl.load(source + part, mask=(offset_r < rank)[None, :], other=0.0), 0)[:, None]
        else:
            inside = (position < end)[:, None] & (offset_r < rank)[None, :]
            value = tl.load(source, mask=inside, other=0.0)
            for split in tl.static_range(1, SPLIT_K):
                value += tl.load(source + split * split_stride, mask=inside, other=0.0)
        weight = tl.load(
            b + offset_r.to(tl.int64)[:, None] * width + column[None, :],
            mask=(offset_r < rank)[:, None] & (column < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        if BLOCK_M == 1:
            products += value * weight
        else:
            # B's 16-bit values are exact in TF32, so only `hidden` loses bits: 2^-11 of it, less than bf16 would.
            total = tl.dot(value, weight, total, input_precision=PRECISION)
    if BLOCK_M == 1:
        total = tl.sum(products, 0)[None, :]
    target = y + row[:, None] * y_stride + tl.multiple_of(first_column, DIVISOR) + column[None, :]
    mask = (position < end)[:, None] & (column < width)[None, :]
    result = tl.load(target, mask=mask, other=0.0).to(tl.float32) + total
    tl.store(target, result.to(y.dtype.element_ty), mask=mask)
