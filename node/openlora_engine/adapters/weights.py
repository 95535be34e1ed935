"""adapter_model.safetensors → a blob, in one pass over the file; and the check that its weights are numbers that fit.

The file passes through one small buffer: hashed, checked, converted and laid out while it is in the CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import FileIO

import torch
from torch import Tensor

from .blob import Blob, allocate
from .digest import Hash
from .finite import bits_of, fits, is_number, magnitude
from .folder import WEIGHTS_FILE
from .plan import Placed, WeightPlan
from .problems import invalid, listed

CHUNK = 1 << 20
"""Bytes read at a time."""


class HashingFile:
    """A file read from front to back; what is read goes into `digest` too, if there is one."""

    def __init__(self, file: FileIO, digest: Hash | None = None) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end."""
        data = self._file.read(size)
        if self._digest is not None:
            self._digest.update(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the file goes; the number of bytes."""
        filled = 0
        while filled < len(buffer) and (count := self._file.readinto(buffer[filled:])):
            filled += count
        if self._digest is not None:
            self._digest.update(buffer[:filled])
        return filled


def check_weights(file: HashingFile, plan: WeightPlan, storage: torch.dtype) -> None:
    """Read all tensors, for the hash and to see that each weight is a number in `storage`. Raises ADAPTER_INVALID."""
    bad: list[str] = []
    large: list[str] = []
    for batch, data in _chunks(file, plan):
        begin, dtype = batch[0][0].begin, batch[0][0].dtype
        bits = bits_of(data.numpy(), dtype)
        if fits(magnitude(bits), dtype, storage):
            continue
        for info, _, _ in batch:
            part = slice((info.begin - begin) // dtype.itemsize, (info.end - begin) // dtype.itemsize)
            highest = magnitude(bits[part])
            if not is_number(highest, dtype):
                bad.append(info.name)
            elif not fits(highest, dtype, storage):
                large.append(info.name)
    if bad:
        raise invalid(f"{WEIGHTS_FILE} has NaN or infinite weights in {listed(bad)}")
    if large:
        raise invalid(
            f"weights too large for {str(storage).removeprefix('torch.')} in {listed(large)}: "
            "start the engine with --lora-dtype float32"
        )


def read_weights(file: HashingFile, plan: WeightPlan, blob: Blob) -> None:
    """Read all tensors into the blob, converted to its dtype, B transposed; then the scales. Raises ADAPTER_INVALID."""
    places = blob.bits
    converted = _Converter(_chunk_bytes(plan), blob.dtype)
    for batch, data in _chunks(file, plan):
        begin, dtype = batch[0][0].begin, batch[0][0].dtype
        weights = bits_of(converted(data, dtype).numpy(), blob.dtype)
        for info, t, is_b in batch:
            # numpy transposes bits several times faster than torch does halves, and on one core.
            source = weights[(info.begin - begin) // dtype.itemsize : (info.end - begin) // dtype.itemsize]
            first = blob.placement.b[t] if is_b else blob.placement.a[t]
            place = places[first : first + len(source)]
            if is_b:
                place.reshape(info.shape[::-1])[...] = source.reshape(info.shape).T
            else:
                place[...] = source
    blob.write_scales(plan.scales)


class _Converter:
    """Chunks in the storage dtype. Its buffers are mappings made once: torch's, taken and freed, fragment the heap."""

    def __init__(self, chunk_bytes: int, storage: torch.dtype) -> None:
        self._chunk_bytes = chunk_bytes
        self._storage = storage
        self._buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 → uint8; valid until the next call."""
        weights = data.view(dtype)
        if dtype is not self._storage:
            # torch has vector code from and to float32 only.
            for step in (torch.float32, self._storage):
                weights = weights if weights.dtype is step else self._buffer(step, weights.numel()).copy_(weights)
        return weights.view(torch.uint8)

    def _buffer(self, dtype: torch.dtype, count: int) -> Tensor:
        if dtype not in self._buffers:
            self._buffers[dtype] = allocate(self._chunk_bytes // 2 * dtype.itemsize)
        return self._buffers[dtype].view(dtype)[:count]


def _chunk_bytes(plan: WeightPlan) -> int:
    return max(CHUNK, *(info.end - info.begin for info, _, _ in plan.tensors))


def _chunks(file: HashingFile, plan: WeightPlan) -> Iterator[tuple[Sequence[Placed], Tensor]]:
    """Runs of tensors of one dtype, of about CHUNK bytes, with their bytes: uint8, valid until the next ones."""
    scratch = allocate(_chunk_bytes(plan))
    for batch in _batches(plan.tensors):
        data = scratch[: batch[-1][0].end - batch[0][0].begin]
        if file.readinto(data.numpy().data) < data.numel():
            raise invalid(f"{WEIGHTS_FILE} became shorter while it was read")
        yield batch, data


def _batches(tensors: Sequence[Placed]) -> Iterator[Sequence[Placed]]:
    start = 0
    for i, (info, _, _) in enumerate(tensors):
        first = tensors[start][0]
        if i > start and (info.end - first.begin > CHUNK or info.dtype is not first.dtype):
            yield tensors[start:i]
            start = i
    yield tensors[start:]
