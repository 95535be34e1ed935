"""A chain simulated in memory, for programs of events that a real node would take minutes to go through.

It keeps what the outbox's promises hang on: nonces in order, one transaction a nonce, replacement by a tenth more fee,
a pool that may forget, heads that may be reorganised. It checks signatures for real and executes nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from openlora_chain.errors import ChainErrorCode, Reverted, RpcError
from openlora_chain.rpc import Call, Head, TxReceipt
from openlora_chain.store import BlockRef
from openlora_chain.wallet import Wallet
from openlora_node.journal.database import Transaction
from openlora_node.journal.outbox import JournalOutbox
from openlora_node.journal.schema import bundled

T = TypeVar("T")
CHAIN_ID = 31337
BASE_FEE = 10**9


@dataclass(frozen=True)
class Tx:
    """A transaction that a pool or a block holds."""

    hash: bytes
    sender: bytes
    nonce: int
    to: bytes
    value: int
    data: bytes
    max_fee: int
    priority_fee: int


def decode_tx(raw: bytes) -> Tx:
    """The fields of a signed type-2 transaction, its sender recovered."""
    fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    assert fields["chainId"] == CHAIN_ID
    return Tx(
        hash=bytes(keccak(raw)),
        sender=bytes.fromhex(Account.recover_transaction(raw)[2:]),
        nonce=fields["nonce"],
        to=bytes(HexBytes(fields["to"])),
        value=fields["value"],
        data=bytes(HexBytes(fields["data"])),
        max_fee=fields["maxFeePerGas"],
        priority_fee=fields["maxPriorityFeePerGas"],
    )


@dataclass(frozen=True)
class Block:
    """A block: hash and transactions."""

    hash: bytes
    txs: tuple[Tx, ...]


@dataclass
class SimChain:
    """Implements ChainAccess. `refuses` maps calldata to the revert data of a simulation; `reverts` fails on chain."""

    blocks: list[Block] = field(default_factory=lambda: [Block(bytes(32), ())])
    pool: dict[tuple[bytes, int], Tx] = field(default_factory=dict)
    oldest: dict[tuple[bytes, int], Tx] = field(default_factory=dict)
    refuses: dict[bytes, bytes] = field(default_factory=dict)
    reverts: set[bytes] = field(default_factory=set)
    funds: int = 10**24
    base_fee: int = BASE_FEE
    unreachable: bool = False
    sends: int = 0
    chain: int = CHAIN_ID
    hidden_receipts: bool = False
    forgets_state: bool = False
    overstated_nonce: int = 0
    _fork: int = 0

    def mine(self, count: int | None = None) -> None:
        """A block of what the pool offers, `count` transactions at most."""
        taken: list[Tx] = []
        for (sender, nonce), tx in sorted(self.pool.items(), key=lambda item: item[0]):
            if (count is None or len(taken) < count) and tx.max_fee >= self.base_fee:
                next_nonce = self._nonce(sender, len(self.blocks) - 1) + sum(other.sender == sender for other in taken)
                if nonce == next_nonce:
                    taken.append(tx)
        self._append(tuple(taken))

    def reorg(self, depth: int, fate: str) -> None:
        """Replace the newest `depth` blocks by empty ones.

        Their transactions are "lost", "returned" to the pool, or give way to the "oldest" ever sent with their nonce.
        """
        depth = min(depth, len(self.blocks) - 1)
        self._fork += 1
        gone = [tx for block in self.blocks[len(self.blocks) - depth :] for tx in block.txs]
        del self.blocks[len(self.blocks) - depth :]
        if fate != "lost":
            for tx in gone:
                key = tx.sender, tx.nonce
                self.pool.setdefault(key, self.oldest.get(key, tx) if fate == "oldest" else tx)
        for _ in range(depth):
            self._append(())

    def drop_pool(self) -> None:
        """The node forgets what is pending."""
        self.pool.clear()

    def executions(self) -> Counter[bytes]:
        """Calldata → how often it was executed with success."""
        return Counter(tx.data for block in self.blocks for tx in block.txs if tx.data not in self.reverts)

    def _append(self, txs: tuple[Tx, ...]) -> None:
        parent = self.blocks[-1].hash
        seed = parent + b"".join(tx.hash for tx in txs) + self._fork.to_bytes(4, "big")
        self.blocks.append(Block(hashlib.sha256(seed).digest(), txs))
        for tx in txs:
            self.pool.pop((tx.sender, tx.nonce), None)

    def _nonce(self, account: bytes, at: int) -> int:
        return sum(tx.sender == account for block in self.blocks[: at + 1] for tx in block.txs)

    def _answer(self) -> None:
        if self.unreachable:
            raise RpcError(ChainErrorCode.RPC_UNREACHABLE, "no answer")

    async def chain_id(self) -> int:
        self._answer()
        return self.chain

    async def head(self) -> Head:
        head = await self.block(len(self.blocks) - 1)
        assert head is not None
        return head

    async def block(self, number: int) -> Head | None:
        self._answer()
        if not 0 <= number < len(self.blocks):
            return None
        parent = self.blocks[number - 1].hash if number else bytes(32)
        return Head(number, self.blocks[number].hash, parent, 1_700_000_000 + 2 * number, self.base_fee)

    async def nonce(self, account: bytes, at: int | None = None) -> int:
        self._answer()
        if at is not None and self.forgets_state and at < len(self.blocks) - 20:
            raise RpcError(ChainErrorCode.RPC_FAILED, "missing trie node")
        return self._nonce(account, len(self.blocks) - 1 if at is None else at) + self.overstated_nonce

    async def balance(self, account: bytes) -> int:
        self._answer()
        return self.funds

    async def call(self, call: Call, at: int | None = None) -> bytes:
        self._answer()
        if call.data in self.refuses:
            raise Reverted(self.refuses[call.data])
        return b""

    async def estimate_gas(self, call: Call) -> int:
        await self.call(call)
        return 50_000

    async def priority_fee(self) -> int:
        self._answer()
        return 10**8

    async def send_raw(self, raw: bytes) -> None:
        self._answer()
        self.sends += 1
        tx = decode_tx(raw)
        if tx.nonce < self._nonce(tx.sender, len(self.blocks) - 1):
            raise RpcError(ChainErrorCode.RPC_FAILED, "nonce too low")
        held = self.pool.get((tx.sender, tx.nonce))
        if held == tx:
            raise RpcError(ChainErrorCode.RPC_FAILED, "already known")
        if held and (tx.max_fee * 10 < held.max_fee * 11 or tx.priority_fee * 10 < held.priority_fee * 11):
            raise RpcError(ChainErrorCode.RPC_FAILED, "replacement transaction underpriced")
        self.pool[tx.sender, tx.nonce] = tx
        self.oldest.setdefault((tx.sender, tx.nonce), tx)

    async def knows(self, tx_hash: bytes) -> bool:
        self._answer()
        mined = any(tx.hash == tx_hash for block in self.blocks for tx in block.txs)
        return mined or any(tx.hash == tx_hash for tx in self.pool.values())

    async def receipt(self, tx_hash: bytes) -> TxReceipt | None:
        self._answer()
        if self.hidden_receipts:
            return None
        for number, block in enumerate(self.blocks):
            for tx in block.txs:
                if tx.hash == tx_hash:
                    succeeded = tx.data not in self.reverts
                    return TxReceipt(tx_hash, BlockRef(number, block.hash), succeeded, 21_000, None, ())
        return None

    async def transactions_from(self, number: int, sender: bytes) -> dict[int, bytes]:
        self._answer()
        return {tx.nonce: tx.hash for tx in self.blocks[number].txs if tx.sender == sender}


class MemoryOutbox(JournalOutbox):
    """The journal's own SQL on a database in memory: real transactions without a disk."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for migration in bundled():
            for statement in migration.statements():
                self.connection.execute(statement)

    async def _run(self, operation: Callable[[Transaction], T]) -> T:
        self.connection.execute("BEGIN")
        try:
            result = operation(Transaction(self.connection))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return result


HOT = Wallet(b"\x01" * 32)
TARGET = b"\x77" * 20
