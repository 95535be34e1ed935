"""A dataset's share table: who contributed, and which part of its income is theirs. Pure.

The root of the table stands in the dataset's manifest and in the registry; the table itself travels as `shares.json`
beside the data, so that anyone can make the proof a claim needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ..protocol.crypto import Address
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import format_address, parse_address
from ..protocol.manifest import canonical_json
from ..protocol.merkle import MerkleTree, amount_leaf

WHOLE = 10_000
"""Basis points of a dataset's income."""
MAX_SHARES = 10_000


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    account: str
    bps: int


_rows = msgspec.json.Decoder(list[_Row])


@dataclass(frozen=True)
class ShareTable:
    """(address, basis points), ascending by address; 10,000 in all."""

    shares: tuple[tuple[Address, int], ...]

    def __post_init__(self) -> None:
        accounts = [account for account, _ in self.shares]
        if not 1 <= len(accounts) <= MAX_SHARES or accounts != sorted(set(accounts)):
            raise _refuse(f"a share table names 1 to {MAX_SHARES} addresses, each once")
        if any(bps < 1 for _, bps in self.shares) or sum(bps for _, bps in self.shares) != WHOLE:
            raise _refuse(f"shares are whole basis points above 0 and come to {WHOLE}")

    @classmethod
    def of(cls, shares: Iterable[tuple[Address, int]]) -> ShareTable:
        """A table from shares in any order. Raises BAD_MANIFEST."""
        return cls(tuple(sorted(shares)))

    @classmethod
    def decode(cls, data: bytes) -> ShareTable:
        """Read `[{"account": "0x…", "bps": n}, …]`. Raises BAD_MANIFEST, BAD_ID."""
        try:
            rows = _rows.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _refuse('a share table is a JSON list of {"account": "0x…", "bps": n}') from None
        return cls.of((parse_address(row.account), row.bps) for row in rows)

    def encode(self) -> bytes:
        """Canonical JSON: what `shares.json` holds."""
        return canonical_json([{"account": format_address(account), "bps": bps} for account, bps in self.shares])

    @property
    def root(self) -> bytes:
        """32 bytes: the root that manifest and registry hold."""
        return self._tree().root

    def bps(self, account: bytes) -> int:
        """Basis points of an address; 0 for a stranger."""
        return dict(self.shares).get(Address(account), 0)

    def proof(self, account: bytes) -> tuple[bytes, ...]:
        """The proof of an address's share under the root. Raises NOT_FOUND for a stranger."""
        bps = self.bps(account)
        if not bps:
            raise ProtocolError(ErrorCode.NOT_FOUND, "this address has no share in the dataset")
        return tuple(self._tree().proof(amount_leaf(account, bps)))

    def _tree(self) -> MerkleTree:
        return MerkleTree(amount_leaf(account, bps) for account, bps in self.shares)


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, message)
