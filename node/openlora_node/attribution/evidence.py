"""The leaves behind a receipt's two roots as the journal keeps them: small, and without their salts.

A msgpack list of two lists, attribution and commitment, of (name, value without its leading zero bytes). The salts come
out of the receipt's (see `leaves.salt_of`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.merkle import NamedLeaf
from .leaves import salt_of

Packed = tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]
_decoder = msgspec.msgpack.Decoder(Packed)


@dataclass(frozen=True)
class Evidence:
    """All leaves of one receipt, each group in ascending order of names."""

    attribution: tuple[NamedLeaf, ...] = ()
    commitment: tuple[NamedLeaf, ...] = ()

    def pack(self) -> bytes:
        """As the journal keeps it."""
        groups = (self.attribution, self.commitment)
        return msgspec.msgpack.encode([[(leaf.name, leaf.value.lstrip(b"\0")) for leaf in group] for group in groups])

    @classmethod
    def unpack(cls, data: bytes, salt: bytes) -> Evidence:
        """Out of the journal; `salt` is the receipt's. Raises JOURNAL_CORRUPT."""
        if not data:
            return cls()
        try:
            groups = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT, "the leaves of a receipt do not parse") from None
        if any(len(value) > 32 for group in groups for _, value in group):
            raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT, "a leaf of a receipt has more than 32 bytes")
        attribution, commitment = (
            tuple(NamedLeaf(name, value.rjust(32, b"\0"), salt_of(salt, name)) for name, value in group)
            for group in groups
        )
        return cls(attribution, commitment)
