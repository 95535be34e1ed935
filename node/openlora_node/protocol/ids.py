"""Identifiers and their one text form: artifact ids, node ids, addresses, digests.

Inside the program an id is bytes; text is parsed at the border, so that no unchecked text ever becomes a path or a key.
"""

from __future__ import annotations

import re
from typing import NewType

from .crypto import Address, keccak256
from .errors import ErrorCode, ProtocolError

ArtifactId = NewType("ArtifactId", bytes)
"""32 bytes: sha-256 of an artifact's canonical manifest. Text form `sha256:<64 lower-case hex>`."""
NodeId = NewType("NodeId", bytes)
"""32 bytes: a node's stable id from the NodeRegistry. Text form `0x<64 hex>`."""
PipelineId = NewType("PipelineId", bytes)
"""32 bytes: the EIP-712 struct hash of a Pipeline. Text form `0x<64 hex>`."""
Digest = NewType("Digest", bytes)
"""32 bytes: an EIP-712 digest or a keccak-256. Text form `0x<64 hex>`."""

ZERO32 = bytes(32)

_ARTIFACT = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_HEX32 = re.compile(r"0x([0-9a-fA-F]{64})", re.ASCII)
_HEX20 = re.compile(r"0x([0-9a-fA-F]{40})", re.ASCII)


def parse_artifact_id(text: str) -> ArtifactId:
    """`sha256:<64 lower-case hex>` → 32 bytes. Raises ProtocolError BAD_ID."""
    if match := _ARTIFACT.fullmatch(text):
        return ArtifactId(bytes.fromhex(match[1]))
    raise ProtocolError(ErrorCode.BAD_ID, "an artifact id is sha256:<64 lower-case hex>")


def format_artifact_id(artifact: bytes) -> str:
    """32 bytes → `sha256:<64 lower-case hex>`."""
    return f"sha256:{artifact.hex()}"


def parse_bytes32(text: str) -> bytes:
    """`0x<64 hex>` → 32 bytes: node ids, pipeline ids, digests. Raises ProtocolError BAD_ID."""
    if match := _HEX32.fullmatch(text):
        return bytes.fromhex(match[1])
    raise ProtocolError(ErrorCode.BAD_ID, "this id is 0x<64 hex>")


def format_bytes(value: bytes) -> str:
    """Bytes → `0x<lower-case hex>`."""
    return f"0x{value.hex()}"


def parse_address(text: str) -> Address:
    """`0x<40 hex>` → 20 bytes. Mixed case must carry a right EIP-55 checksum. Raises ProtocolError BAD_ID."""
    match = _HEX20.fullmatch(text)
    if not match:
        raise ProtocolError(ErrorCode.BAD_ID, "an address is 0x<40 hex>")
    address = Address(bytes.fromhex(match[1]))
    if match[1] not in (match[1].lower(), match[1].upper()) and format_address(address) != text:
        raise ProtocolError(ErrorCode.BAD_ID, "the address fails its EIP-55 checksum: a digit was mistyped")
    return address


def format_address(address: bytes) -> str:
    """20 bytes → EIP-55 text."""
    digits = address.hex()
    checksum = keccak256(digits.encode()).hex()
    return "0x" + "".join(d.upper() if c >= "8" else d for d, c in zip(digits, checksum, strict=False))
