"""Transactions before and after signing, and the interface of whatever signs them. EIP-1559 (type 2) only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class UnsignedTransaction:
    """All that the sender decides. `to` None creates a contract; fees are wei per gas, `value` wei."""

    chain_id: int
    nonce: int
    to: bytes | None
    value: int
    data: bytes
    gas: int
    max_fee: int
    priority_fee: int

    @property
    def most(self) -> int:
        """The most wei that it can cost the sender, value included."""
        return self.value + self.gas * self.max_fee


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """The bytes to broadcast and their hash, by which the chain knows them."""

    raw: bytes
    hash: bytes


class TransactionSigner(Protocol):
    """A hot wallet in memory, or a way to ask somebody who holds the key."""

    @property
    def address(self) -> bytes:
        """The sender, 20 bytes."""
        ...

    async def sign_transaction(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Sign exactly this. Raises ChainError SIGNER_REFUSED."""
        ...
