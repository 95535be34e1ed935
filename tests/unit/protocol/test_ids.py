"""Ids: one text form each, parsed to bytes before anything else sees them."""

from __future__ import annotations

import pytest
from eth_utils import to_checksum_address
from hypothesis import given

from openlora_node.protocol import ids
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from support.strategies import bytes20, bytes32


@given(value=bytes32)
def test_ids_round_trip(value: bytes) -> None:
    assert ids.parse_artifact_id(ids.format_artifact_id(value)) == value
    assert ids.parse_bytes32(ids.format_bytes(value)) == value


@given(value=bytes20)
def test_addresses_equal_eip_55(value: bytes) -> None:
    text = ids.format_address(value)
    assert text == to_checksum_address(value)
    assert ids.parse_address(text) == ids.parse_address(text.lower()) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 64 + "\n",
        "SHA256:" + "a" * 64,
        "sha256:../../../../etc/passwd".ljust(71, "a"),
        "sha256:" + "٣" * 64,
        "a" * 64,
    ],
)
def test_artifact_ids_are_exact(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        ids.parse_artifact_id(text)
    assert caught.value.code == ErrorCode.BAD_ID


@pytest.mark.parametrize("text", ["", "0x", "0x" + "a" * 39, "0x" + "a" * 41, "a" * 40, "0x" + "g" * 40])
def test_addresses_are_exact(text: str) -> None:
    with pytest.raises(ProtocolError):
        ids.parse_address(text)


def test_mistyped_checksum_is_caught() -> None:
    good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert ids.parse_address(good)
    with pytest.raises(ProtocolError):
        ids.parse_address(good[:-1] + "D")
