"""An Ethereum chain inside this process: py-evm, one block per transaction, revert data kept. Synchronous, one thread.

Everything that happens is a function of the genesis time and of the recorded blocks, hashes included: replaying the
record of `history` gives the same chain. Knows no JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockAPI, BlockHeaderAPI, LogAPI, ReceiptAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_DIFFICULTY, POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db.atomic import AtomicDB
from eth.exceptions import HeaderNotFound, Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_utils.exceptions import ValidationError

from .. import recursion
from ..errors import Reverted
from ..rpc import Call
from .accounts import DEVNET_CHAIN_ID

recursion.restore()

BLOCK_GAS_LIMIT = 30_000_000
MAX_WAITING = 1_024
COINBASE = b"\xc0" * 20


class DevChain(MiningChain):
    """py-evm's chain with our id and a constant gas limit."""

    chain_id = DEVNET_CHAIN_ID
    vm_configuration = ((0, PragueVM),)  # type: ignore[assignment]

    def create_header_from_parent(self, parent_header: BlockHeaderAPI, **fields: Any) -> BlockHeaderAPI:
        """A child header of the same gas limit."""
        return super().create_header_from_parent(parent_header, **{**fields, "gas_limit": parent_header.gas_limit})


class RefusedTransaction(Exception):
    """A transaction that no block can take. Its text is for the sender."""


@dataclass(frozen=True, slots=True)
class Mined:
    """A mined block with the receipt of its transaction, None for an empty block."""

    block: BlockAPI
    receipt: ReceiptAPI | None

    @property
    def transaction(self) -> SignedTransactionAPI | None:
        """The one transaction."""
        return self.block.transactions[0] if self.block.transactions else None

    @property
    def logs(self) -> tuple[LogAPI, ...]:
        """The transaction's logs."""
        return tuple(self.receipt.logs) if self.receipt else ()


class EmbeddedChain:
    """The chain. `on_block(timestamp, raw)` is called before a block becomes visible: whoever keeps it can replay."""

    def __init__(
        self,
        genesis_time: int,
        alloc: Mapping[bytes, int],
        clock: Callable[[], int] = lambda: int(time.time()),
        on_block: Callable[[int, bytes | None], None] = lambda _timestamp, _raw: None,
    ) -> None:
        state = {
            account: {"balance": wei, "nonce": 0, "code": b"", "storage": {}} for account, wei in sorted(alloc.items())
        }
        genesis = {
            "coinbase": COINBASE,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": BLOCK_GAS_LIMIT,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "timestamp": genesis_time,
            "transaction_root": BLANK_ROOT_HASH,
        }
        chain: Any = DevChain.from_genesis(AtomicDB(), genesis, state)  # type: ignore[arg-type]
        self._chain = chain
        self._clock = clock
        self.on_block = on_block
        self.time_offset = 0
        self.blocks: list[Mined] = [Mined(self._chain.get_canonical_block_by_number(0), None)]
        self._by_tx: dict[bytes, Mined] = {}
        self._by_hash: dict[bytes, Mined] = {self.head.block.hash: self.head}
        self._waiting: dict[tuple[bytes, int], bytes] = {}

    @property
    def head(self) -> Mined:
        """The newest block."""
        return self.blocks[-1]

    def by_transaction(self, tx_hash: bytes) -> Mined | None:
        """The block that holds a transaction."""
        return self._by_tx.get(tx_hash)

    def by_hash(self, block_hash: bytes) -> Mined | None:
        """The block of this hash."""
        return self._by_hash.get(block_hash)

    def send(self, raw: bytes) -> bytes:
        """Mine a signed transaction, and those that waited for it; one ahead of its nonce waits. Returns its hash."""
        try:
            transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
            sender, nonce = transaction.sender, transaction.nonce
        except Exception:  # noqa: BLE001 - decoders and signature checks raise whatever their layers raise
            raise RefusedTransaction("this is no signed transaction") from None
        if transaction.hash in self._by_tx:
            raise RefusedTransaction("already known")
        due = self.nonce(sender)
        if nonce > due:
            if len(self._waiting) >= MAX_WAITING:
                raise RefusedTransaction("too many transactions wait for earlier nonces")
            self._waiting[sender, nonce] = raw
            return bytes(transaction.hash)
        if nonce < due:
            raise RefusedTransaction(f"nonce too low: {nonce}, the account is at {due}")
        self._mine_with(transaction, raw)
        for following in self._take_following(sender, nonce + 1):
            self.send(following)
        return bytes(transaction.hash)

    def mine(self, timestamp: int | None = None) -> None:
        """An empty block."""
        at = self._next_time() if timestamp is None else timestamp
        self.on_block(at, None)
        self._chain.set_header_timestamp(at)
        self._seal(None)

    def replay(self, timestamp: int, raw: bytes | None) -> None:
        """A recorded block, at its recorded time."""
        if raw is None:
            self.mine(timestamp)
        else:
            self._mine_with(self._chain.get_vm().get_transaction_builder().decode(raw), raw, timestamp)

    def nonce(self, account: bytes, at: int | None = None) -> int:
        """Transactions of the account up to a block."""
        return int(self._vm(at).state.get_nonce(account))

    def balance(self, account: bytes, at: int | None = None) -> int:
        """Wei at a block."""
        return int(self._vm(at).state.get_balance(account))

    def code(self, account: bytes, at: int | None = None) -> bytes:
        """Bytecode at a block."""
        return bytes(self._vm(at).state.get_code(account))

    def storage(self, account: bytes, slot: int, at: int | None = None) -> int:
        """A storage word at a block."""
        return int(self._vm(at).state.get_storage(account, slot))

    def call(self, call: Call, at: int | None = None) -> bytes:
        """Simulate on the state after a block, in a block of this moment. Raises Reverted."""
        return self._simulate(call, call.gas or BLOCK_GAS_LIMIT, at)[0]

    def estimate_gas(self, call: Call) -> int:
        """Gas that is enough. Raises Reverted."""
        used = self._simulate(call, BLOCK_GAS_LIMIT, None)[1]
        limit = used
        # Refunds and the 63/64 rule make a call need more than it uses; after refunds even less than it costs to begin.
        while limit < BLOCK_GAS_LIMIT:
            try:
                self._simulate(call, limit, None)
            except (Reverted, RefusedTransaction):
                limit += limit // 8
            else:
                return limit
        return BLOCK_GAS_LIMIT

    def _simulate(self, call: Call, gas: int, at: int | None) -> tuple[bytes, int]:
        vm = self._vm(at)
        unsigned = vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=DEVNET_CHAIN_ID,
            nonce=vm.state.get_nonce(call.sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=min(gas, BLOCK_GAS_LIMIT),
            to=call.to or b"",
            value=call.value,
            data=call.data,
            access_list=(),
        )
        try:
            with vm.in_costless_state() as state:
                result = state.apply_transaction(SpoofTransaction(unsigned, from_=call.sender))
        except ValidationError as error:
            raise RefusedTransaction(str(error)) from None
        if result.is_error:
            fault = result.error
            raise Reverted(bytes(fault.args[0]) if isinstance(fault, Revert) and fault.args else b"")
        return bytes(result.output), int(result.get_gas_used())

    def _vm(self, at: int | None) -> Any:
        block = self.head if at is None else self.blocks[min(at, len(self.blocks) - 1)]
        return self._chain.get_vm(at_header=block.block.header)

    def _next_time(self) -> int:
        return max(self._clock() + self.time_offset, int(self.head.block.header.timestamp) + 1)

    def _mine_with(self, transaction: SignedTransactionAPI, raw: bytes, timestamp: int | None = None) -> None:
        at = self._next_time() if timestamp is None else timestamp
        self._chain.set_header_timestamp(at)
        pending = self._chain.header
        try:
            _, receipt, _ = self._chain.apply_transaction(transaction)
        except (ValidationError, VMError, HeaderNotFound) as error:
            self._chain.header = pending
            raise RefusedTransaction(str(error)) from None
        self.on_block(at, raw)
        self._seal(receipt)

    def _seal(self, receipt: ReceiptAPI | None) -> None:
        block = self._chain.mine_block(coinbase=COINBASE, mix_hash=bytes(32), blob_gas_used=0)
        mined = Mined(block, receipt)
        self.blocks.append(mined)
        self._by_hash[block.hash] = mined
        if mined.transaction is not None:
            self._by_tx[mined.transaction.hash] = mined

    def _take_following(self, sender: bytes, nonce: int) -> Iterator[bytes]:
        if (raw := self._waiting.pop((sender, nonce), None)) is not None:
            yield raw
