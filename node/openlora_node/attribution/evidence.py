"""The leaves behind a receipt's two roots as journals keep them and as they travel: small, and without their salts.

A msgpack list of two lists, attribution and commitment, of (name, value without its leading zero bytes) in ascending
order of names. The salts come out of the receipt's (see `leaves.salt_of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import ZERO32, format_bytes
from ..protocol.merkle import NamedLeaf
from .leaves import salt_of

MAX_LEAVES = 4_096
"""In one group."""
Group = list[tuple[str, bytes]]
_Given = Annotated[
    list[tuple[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[bytes, Meta(max_length=32)]]],
    Meta(max_length=MAX_LEAVES),
]
_kept = msgspec.msgpack.Decoder(tuple[Group, Group])
_given = msgspec.msgpack.Decoder(tuple[_Given, _Given])


@dataclass(frozen=True)
class Evidence:
    """All leaves of one receipt, each group in ascending order of names."""

    attribution: tuple[NamedLeaf, ...] = ()
    commitment: tuple[NamedLeaf, ...] = ()

    def pack(self) -> bytes:
        """As journals keep it."""
        groups = (self.attribution, self.commitment)
        return msgspec.msgpack.encode([[(leaf.name, leaf.value.lstrip(b"\0")) for leaf in group] for group in groups])

    @classmethod
    def unpack(cls, data: bytes, salt: bytes) -> Evidence:
        """Out of a journal; `salt` is the receipt's. Raises JOURNAL_CORRUPT."""
        if not data:
            return cls()
        try:
            groups = _kept.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT, "the leaves of a receipt do not parse") from None
        if any(len(value) > 32 for group in groups for _, value in group):
            raise OpenLoraError(ErrorCode.JOURNAL_CORRUPT, "a leaf of a receipt has more than 32 bytes")
        return cls._salted(groups, salt)

    @classmethod
    def read(cls, data: bytes, salt: bytes) -> Evidence:
        """From another machine; `salt` is the receipt's. Nothing is hashed before all bounds hold.

        Raises ProtocolError MALFORMED for what is none, has too many leaves, too long ones, a name twice or out of its
        order.
        """
        try:
            groups = _given.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _malformed(
                f"two lists of at most {MAX_LEAVES} leaves, a name of 64 letters and 32 bytes each"
            ) from None
        for group in groups:
            names = [name for name, _ in group]
            if names != sorted(set(names)):
                raise _malformed("names in ascending order, each once")
            if not all(name.isascii() and name.isprintable() for name in names):
                raise _malformed("names of printable ASCII")
        return cls._salted(groups, salt)

    @classmethod
    def _salted(cls, groups: tuple[Group, Group], salt: bytes) -> Evidence:
        attribution, commitment = (
            tuple(NamedLeaf(name, value.rjust(32, b"\0"), salt_of(salt, name)) for name, value in group)
            for group in groups
        )
        return cls(attribution, commitment)


def as_json(packed: bytes) -> dict[str, dict[str, str]]:
    """Packed leaves for HTTP: group → name → value, 32 bytes as 0x-hex. Raises MALFORMED."""
    evidence = Evidence.read(packed, ZERO32) if packed else Evidence()
    groups = {"attribution": evidence.attribution, "commitment": evidence.commitment}
    return {group: {leaf.name: format_bytes(leaf.value) for leaf in leaves} for group, leaves in groups.items()}


def _malformed(wanted: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, f"these are not a receipt's leaves: {wanted}")
