"""Keccak-256, and secp256k1 signatures over 32-byte digests in the one form that a contract accepts.

A signature is 65 bytes r ‖ s ‖ v with r, s in 1..n-1, s ≤ n/2 (EIP-2) and v 27 or 28. Every other form is refused,
because eth-account accepts forms that OpenZeppelin's ECDSA rejects: a node would serve what it can never redeem.
"""

from __future__ import annotations

import re
from typing import NewType, Protocol

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak as _keccak

from .errors import ErrorCode, ProtocolError

Address = NewType("Address", bytes)
"""20 bytes, the last of keccak-256 of the uncompressed public key."""

SIGNATURE_LENGTH = 65
CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
HALF_CURVE_ORDER = CURVE_ORDER // 2

_HEX65 = re.compile(r"0x[0-9a-fA-F]{130}", re.ASCII)


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it (the original padding, not NIST SHA-3). Returns 32 bytes."""
    return _keccak.new(digest_bits=256, data=data).digest()


class Signer(Protocol):
    """Whatever holds a key: a hot key in memory, a keystore, a remote signer."""

    @property
    def address(self) -> bytes:
        """The address that `recover` gives for this signer's signatures."""
        ...

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes; return 65 bytes r ‖ s ‖ v, s low, v 27 or 28."""
        ...


class LocalSigner:
    """A private key in memory. Its repr and errors never show the key."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:  # coincurve pads short keys
            raise ProtocolError(ErrorCode.MALFORMED, "a private key is 32 bytes in the range 1..n-1")
        self._key = PrivateKey(secret)
        self.address = public_key_address(self._key.public_key)

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes deterministically (RFC 6979)."""
        if len(digest) != 32:
            raise ProtocolError(ErrorCode.MALFORMED, "a digest is 32 bytes")
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    def __repr__(self) -> str:
        return f"LocalSigner(0x{self.address.hex()})"


def public_key_address(key: PublicKey) -> Address:
    """The Ethereum address of a secp256k1 public key."""
    return Address(keccak256(key.format(compressed=False)[1:])[12:])


def check_signature(signature: bytes) -> None:
    """Refuse every form of signature that a contract would refuse. Raises ProtocolError BAD_SIGNATURE."""
    if type(signature) is not bytes or len(signature) != SIGNATURE_LENGTH:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a signature is exactly 65 bytes")
    if signature[64] not in (27, 28):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the last byte of a signature, v, is 27 or 28")
    s = int.from_bytes(signature[32:64], "big")
    if s > HALF_CURVE_ORDER:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "s is in the upper half of the curve order; use the lower twin")
    if s == 0 or not 0 < int.from_bytes(signature[:32], "big") < CURVE_ORDER:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "r and s lie in 1..n-1")


def parse_signature(text: object) -> bytes:
    """`0x<130 hex>` → a signature that `check_signature` accepts. Raises ProtocolError BAD_SIGNATURE."""
    if not isinstance(text, str) or not _HEX65.fullmatch(text):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a signature is 0x<130 hex>: 65 bytes")
    signature = bytes.fromhex(text[2:])
    check_signature(signature)
    return signature


def recover(digest: bytes, signature: bytes) -> Address:
    """The address that signed `digest` (32 bytes). Raises ProtocolError BAD_SIGNATURE for any other form."""
    check_signature(signature)
    if len(digest) != 32:
        raise ProtocolError(ErrorCode.MALFORMED, "a digest is 32 bytes")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None)
    except Exception:  # noqa: BLE001 - libsecp256k1's binding raises bare Exception when no key fits
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "no public key fits this signature") from None
    return public_key_address(key)
