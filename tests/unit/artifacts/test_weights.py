"""What counts as safetensors: whatever the format's own library writes, and nothing that it would not read."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from openlora_node.artifacts.weights import check_safetensors
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
SAMPLE = save({"a": np.ones((2, 3), "float32"), "b": np.zeros((0, 4), "int8"), "c": np.ones(3, "bool")})
OVERFLOW = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'


def accepts(data: bytes) -> bool:
    with TemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            check_safetensors(file.fileno(), len(data), "weights")
        except OpenLoraError as error:
            assert error.code is ErrorCode.BAD_MANIFEST
            return False
        return True


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_what_the_library_writes_is_accepted(tensors: dict[str, tuple[str, list[int]]]) -> None:
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items() if name != "__metadata__"}
    if arrays:
        assert accepts(save(arrays, metadata={"format": "pt"}))


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=3), st.integers(-3, 3))
@example([], -1)
@example([], 1)
def test_what_is_accepted_the_library_reads(changes: list[tuple[int, int]], resize: int) -> None:
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
    changed = bytes(data[:resize]) if resize < 0 else bytes(data) + b"x" * resize
    if accepts(changed):
        safetensors.deserialize(changed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02\0\0\0\0\0\0",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 1 << 40) + b"{}" * 100,
        struct.pack("<Q", 2) + b"[]",
        b"PK\x03\x04" + os.urandom(500),
        b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", len(OVERFLOW)) + OVERFLOW + b"1234",
    ],
)
def test_what_is_something_else_is_refused(data: bytes) -> None:
    assert not accepts(data)


def test_the_file_is_not_read_beyond_its_header(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}'
    path = tmp_path / "sparse"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + (1 << 40))
    with path.open("rb") as file:
        check_safetensors(file.fileno(), 8 + len(header) + (1 << 40), "weights")


def test_a_header_beyond_its_bound_is_refused_unread(tmp_path: Path) -> None:
    header = b"{" + b" " * (8 << 20) + b"}"
    path = tmp_path / "long.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("rb") as file, pytest.raises(OpenLoraError, match="header does not fit"):
        check_safetensors(file.fileno(), path.stat().st_size, path.name)
