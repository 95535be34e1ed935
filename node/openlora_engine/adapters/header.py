"""A safetensors header, parsed with limits before anything is allocated for it. Knows no adapter.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without a gap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import torch

from .folder import WEIGHTS_FILE
from .problems import invalid, printable, refuse

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_NAME_CHARS = 512
_LENGTH_BYTES = 8
_Extent = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file: `begin` and `end` are byte offsets from the file's start."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Reader(Protocol):
    """A file read from front to back."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, fewer at the end."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer as far as the file goes; the number of bytes."""
        ...


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[list[_Extent], msgspec.Meta(max_length=8)]
    data_offsets: tuple[_Extent, _Extent]


def read_header(file: Reader, file_size: int, max_header_bytes: int) -> bytes:
    """The header's JSON; the file is left at the first tensor's first byte. Raises ADAPTER_INVALID."""
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise invalid(f"{WEIGHTS_FILE} is truncated: it has no header")
    length = int.from_bytes(prefix, "little")
    if length > min(max_header_bytes, file_size - _LENGTH_BYTES):
        raise invalid(
            f"{WEIGHTS_FILE} declares a header of {length:,} bytes: "
            f"the file has {file_size:,}, and at most {max_header_bytes:,} are read for this base"
        )
    header = file.read(length)
    if len(header) < length:
        raise invalid(f"{WEIGHTS_FILE} is truncated within its header")
    return header


def parse_header(header: bytes, file_size: int) -> list[TensorInfo]:
    """The tensors in the order of their bytes, which fill the file. Raises ADAPTER_INVALID, listing offenders."""
    start = _LENGTH_BYTES + len(header)
    tensors = _parse(header, start)
    tensors.sort(key=lambda tensor: tensor.begin)
    _check_contiguous(tensors, start, file_size)
    return tensors


def _parse(data: bytes, start: int) -> list[TensorInfo]:
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        metadata = raw.pop("__metadata__", None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise invalid(f"the header of {WEIGHTS_FILE} is not one of safetensors") from None
    tensors, problems = [], []
    for name, entry in entries.items():
        dtype = DTYPES.get(entry.dtype)
        begin, end = entry.data_offsets
        if dtype is None:
            problems.append(f"{name[:MAX_NAME_CHARS]} is {entry.dtype}; F32, F16 and BF16 are read")
        elif len(name) > MAX_NAME_CHARS:
            problems.append(f"{name[:80]}… has a name of {len(name)} characters")
        elif 0 in entry.shape or math.prod(entry.shape) * dtype.itemsize != end - begin:
            problems.append(f"{name} has shape {entry.shape} but {end - begin} bytes")
        else:
            tensors.append(TensorInfo(name, dtype, tuple(entry.shape), start + begin, start + end))
    refuse(problems, WEIGHTS_FILE)
    return tensors


def _check_contiguous(tensors: list[TensorInfo], start: int, file_size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            raise invalid(f"{WEIGHTS_FILE}: {printable(tensor.name)} does not begin where the tensor before it ends")
        position = tensor.end
    if position != file_size:
        raise invalid(f"{WEIGHTS_FILE} has {file_size:,} bytes, its header describes {position:,}: truncated or padded")
