"""Whether a file is safetensors: its header parses, and its tensors fill the file without gap or overlap.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes. Knows no tensor names.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from ..protocol.errors import ErrorCode, ProtocolError
from .layout import read_exactly

MAX_HEADER_BYTES = 8 << 20
"""Some 80,000 tensors. The format's own library takes 100 MB, which costs a stranger's reader seconds and 500 MB."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6,
}  # fmt: skip
_Extent = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


class _Tensor(msgspec.Struct):
    dtype: str
    shape: Annotated[list[_Extent], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Extent, _Extent]


_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tensor = msgspec.json.Decoder(_Tensor)


def check_safetensors(descriptor: int, size: int, name: str) -> None:
    """Refuse a file that is not safetensors from its first byte to its last. Raises BAD_MANIFEST naming `name`."""
    length = int.from_bytes(read_exactly(descriptor, 8, 0), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise _refuse(name, "its header does not fit the file")
    try:
        header = _decoder.decode(read_exactly(descriptor, length, 8))
        tensors = [_tensor.decode(raw) for key, raw in header.items() if key != "__metadata__"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refuse(name, "its header does not parse") from None
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.data_offsets):
        begin, stop = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        if bits is None or begin != end or (stop - begin) * 8 != bits * math.prod(tensor.shape):
            raise _refuse(name, "its tensors do not fill it without gap or overlap")
        end = stop
    if end != size - 8 - length:
        raise _refuse(name, "its tensors end before or after the file does")


def _refuse(name: str, why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, f"{name} is not safetensors: {why}")
