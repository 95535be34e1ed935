"""A credits table: what a node credited a dataset's contributors, cumulative; the leaves behind a posted root."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import format_address, parse_address
from ..protocol.manifest import canonical_json
from ..protocol.merkle import MerkleTree, amount_leaf

MAX_CREDITS = 100_000
MAX_FILE_BYTES = 16 << 20


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    account: str
    wei: str


_rows = msgspec.json.Decoder(list[_Row])


@dataclass(frozen=True)
class CreditTable:
    """(address, cumulative wei), ascending by address."""

    credits: tuple[tuple[bytes, int], ...]

    def __post_init__(self) -> None:
        accounts = [account for account, _ in self.credits]
        if not 1 <= len(accounts) <= MAX_CREDITS or accounts != sorted(set(accounts)):
            raise _refuse(f"a credits table names 1 to {MAX_CREDITS} addresses, each once")

    @classmethod
    def decode(cls, data: bytes) -> CreditTable:
        """Read `[{"account": "0x…", "wei": "n"}, …]`. Raises ProtocolError MALFORMED, BAD_ID."""
        try:
            rows = _rows.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _refuse('a credits table is a JSON list of {"account": "0x…", "wei": "n"}') from None
        if any(not row.wei.isascii() or not row.wei.isdigit() or len(row.wei) > 39 for row in rows):
            raise _refuse("credits are whole wei, as text")
        return cls(tuple(sorted((bytes(parse_address(row.account)), int(row.wei)) for row in rows)))

    def encode(self) -> bytes:
        """Canonical JSON, as `decode` reads it: the same table is the same bytes everywhere."""
        return canonical_json([{"account": format_address(account), "wei": str(wei)} for account, wei in self.credits])

    @property
    def root(self) -> bytes:
        """32 bytes: the root that was posted."""
        return self._tree().root

    def wei(self, account: bytes) -> int:
        """Cumulative wei of an address; 0 for a stranger."""
        return dict(self.credits).get(account, 0)

    def proof(self, account: bytes) -> tuple[bytes, ...]:
        """The proof of an address's credits under the root. Raises ProtocolError NOT_FOUND for a stranger."""
        return self._tree().proof(amount_leaf(account, self.wei(account)))

    def _tree(self) -> MerkleTree:
        return MerkleTree(amount_leaf(account, wei) for account, wei in self.credits)


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, message)
