"""The JSON-RPC methods of the embedded chain: hex in, hex out. Synchronous; the bridge calls it from one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rlp  # type: ignore[import-untyped]
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from ..errors import Reverted
from ..rpc import Call
from .accounts import DEVNET_CHAIN_ID
from .evm import EmbeddedChain, Mined, RefusedTransaction

PRIORITY_FEE = 10**8
MAX_LOG_RANGE = 10_000
INVALID_PARAMS, METHOD_NOT_FOUND, SERVER_ERROR, REVERT = -32602, -32601, -32000, 3


class MethodError(Exception):
    """A JSON-RPC error object."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message} | ({} if data is None else {"data": data})


class Methods:
    """Answers calls by name. What it does not know is METHOD_NOT_FOUND, as from any node."""

    def __init__(self, chain: EmbeddedChain) -> None:
        self._chain = chain
        self._table: dict[str, Callable[..., Any]] = {
            "eth_chainId": lambda: hex(DEVNET_CHAIN_ID),
            "net_version": lambda: str(DEVNET_CHAIN_ID),
            "web3_clientVersion": lambda: "openlora-devnet/py-evm",
            "eth_syncing": lambda: False,
            "eth_accounts": list,
            "eth_blockNumber": lambda: hex(chain.head.block.number),
            "eth_gasPrice": lambda: hex(_base_fee(chain.head) + PRIORITY_FEE),
            "eth_maxPriorityFeePerGas": lambda: hex(PRIORITY_FEE),
            "eth_feeHistory": self._fee_history,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getTransactionCount": lambda account, at="latest": hex(chain.nonce(_data(account), self._height(at))),
            "eth_getBalance": lambda account, at="latest": hex(chain.balance(_data(account), self._height(at))),
            "eth_getCode": lambda account, at="latest": _hex(chain.code(_data(account), self._height(at))),
            "eth_getStorageAt": self._storage,
            "eth_getLogs": self._logs,
            "eth_call": lambda call, at="latest": _hex(chain.call(_call(call), self._height(at))),
            "eth_estimateGas": lambda call, _at="latest": hex(chain.estimate_gas(_call(call))),
            "eth_sendRawTransaction": lambda raw: _hex(chain.send(_data(raw))),
            "evm_mine": self._mine,
            "evm_increaseTime": self._increase_time,
        }

    def __call__(self, method: str, params: list[Any]) -> Any:
        """The result. Raises MethodError."""
        handler = self._table.get(method)
        if handler is None:
            raise MethodError(METHOD_NOT_FOUND, f"the devnet has no method {method[:64]}")
        try:
            return handler(*params)
        except Reverted as error:
            raise MethodError(REVERT, "execution reverted", _hex(error.data)) from None
        except RefusedTransaction as error:
            raise MethodError(SERVER_ERROR, str(error)) from None
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, AttributeError):
            raise MethodError(INVALID_PARAMS, f"{method} does not take these parameters") from None

    def _height(self, tag: Any) -> int | None:
        if tag in ("latest", "pending", "safe", "finalized"):
            return None
        number = 0 if tag == "earliest" else int(tag, 16)
        if number > self._chain.head.block.number:
            raise MethodError(SERVER_ERROR, "unknown block")
        return number

    def _block_by_number(self, tag: Any, full: bool = False) -> Any:
        if tag in ("latest", "pending", "safe", "finalized"):
            return _block(self._chain.head, full)
        number = 0 if tag == "earliest" else int(tag, 16)
        return _block(self._chain.blocks[number], full) if number < len(self._chain.blocks) else None

    def _block_by_hash(self, block_hash: str, full: bool = False) -> Any:
        mined = self._chain.by_hash(_data(block_hash))
        return None if mined is None else _block(mined, full)

    def _transaction(self, tx_hash: str) -> Any:
        mined = self._chain.by_transaction(_data(tx_hash))
        return None if mined is None else _transaction(mined)

    def _receipt(self, tx_hash: str) -> Any:
        mined = self._chain.by_transaction(_data(tx_hash))
        return None if mined is None else _receipt(mined)

    def _storage(self, account: str, slot: str, at: Any = "latest") -> str:
        return f"0x{self._chain.storage(_data(account), int(slot, 16), self._height(at)):064x}"

    def _logs(self, query: dict[str, Any]) -> list[Any]:
        head = self._chain.head.block.number
        if "blockHash" in query:
            mined = self._chain.by_hash(_data(query["blockHash"]))
            if mined is None:
                raise MethodError(SERVER_ERROR, "unknown block")
            first = last = int(mined.block.number)
        else:
            heights = [self._height(query.get(key, "latest")) for key in ("fromBlock", "toBlock")]
            first, last = (head if height is None else height for height in heights)
        if last - first >= MAX_LOG_RANGE:
            raise MethodError(SERVER_ERROR, f"a range has at most {MAX_LOG_RANGE} blocks")
        wanted = query.get("address") or []
        addresses = {_data(address) for address in ([wanted] if isinstance(wanted, str) else wanted)}
        topics = query.get("topics") or []
        found = [log for mined in self._chain.blocks[first : last + 1] for log in _logs(mined)]
        return [
            log
            for log in found
            if (not addresses or _data(log["address"]) in addresses) and _matches(topics, log["topics"])
        ]

    def _fee_history(self, count: Any, _newest: Any = "latest", percentiles: Any = ()) -> Any:
        number = min(int(count, 16) if isinstance(count, str) else int(count), len(self._chain.blocks), 1_024)
        blocks = self._chain.blocks[-number:]
        fees = [hex(_base_fee(mined)) for mined in blocks]
        return {
            "oldestBlock": hex(blocks[0].block.number),
            "baseFeePerGas": [*fees, fees[-1]],
            "gasUsedRatio": [mined.block.header.gas_used / mined.block.header.gas_limit for mined in blocks],
            "reward": [[hex(PRIORITY_FEE) for _ in percentiles or ()] for _ in blocks],
        }

    def _mine(self, _options: Any = None) -> str:
        self._chain.mine()
        return "0x0"

    def _increase_time(self, seconds: Any) -> str:
        step = int(seconds, 16) if isinstance(seconds, str) else int(seconds)
        if step < 0:
            raise ValueError
        self._chain.time_offset += step
        return hex(self._chain.time_offset)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _data(value: str) -> bytes:
    if not value.startswith("0x"):
        raise ValueError("hex starts with 0x")
    return bytes.fromhex(value[2:])


def _call(fields: dict[str, Any]) -> Call:
    to = fields.get("to")
    return Call(
        sender=_data(fields.get("from") or "0x" + "00" * 20),
        to=None if not to else _data(to),
        data=_data(fields.get("data") or fields.get("input") or "0x"),
        value=int(fields.get("value") or "0x0", 16),
        gas=int(fields["gas"], 16) if fields.get("gas") else None,
    )


def _base_fee(mined: Mined) -> int:
    return int(mined.block.header.base_fee_per_gas or 0)


def _matches(wanted: list[Any], topics: list[str]) -> bool:
    if len(wanted) > len(topics):
        return False
    pairs = zip(wanted, topics, strict=False)
    return all(want is None or have in ([want] if isinstance(want, str) else want) for want, have in pairs)


def _block(mined: Mined, full: bool) -> dict[str, Any]:
    header, transaction = mined.block.header, mined.transaction
    shown = [] if transaction is None else [_transaction(mined) if full else _hex(transaction.hash)]
    return {
        "number": hex(header.block_number),
        "hash": _hex(header.hash),
        "parentHash": _hex(header.parent_hash),
        "nonce": _hex(header.nonce),
        "sha3Uncles": _hex(header.uncles_hash),
        "logsBloom": f"0x{header.bloom:0512x}",
        "transactionsRoot": _hex(header.transaction_root),
        "stateRoot": _hex(header.state_root),
        "receiptsRoot": _hex(header.receipt_root),
        "miner": to_checksum_address(header.coinbase),
        "difficulty": hex(header.difficulty),
        "totalDifficulty": "0x0",
        "mixHash": _hex(header.mix_hash),
        "extraData": _hex(header.extra_data),
        "size": hex(len(rlp.encode(mined.block))),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "baseFeePerGas": hex(_base_fee(mined)),
        "uncles": [],
        "transactions": shown,
    }


def _place(mined: Mined) -> dict[str, str]:
    return {"blockHash": _hex(mined.block.hash), "blockNumber": hex(mined.block.number), "transactionIndex": "0x0"}


def _transaction(mined: Mined) -> dict[str, Any]:
    transaction: Any = mined.transaction
    fields = {
        "hash": _hex(transaction.hash),
        "type": hex(getattr(transaction, "type_id", None) or 0),
        "chainId": hex(DEVNET_CHAIN_ID),
        "nonce": hex(transaction.nonce),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(_effective_price(mined)),
        "input": _hex(transaction.data),
        "v": hex(transaction.y_parity if hasattr(transaction, "y_parity") else transaction.v),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
    }
    if getattr(transaction, "type_id", 0) == 2:
        fields["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        fields["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return fields | _place(mined)


def _effective_price(mined: Mined) -> int:
    transaction: Any = mined.transaction
    if getattr(transaction, "type_id", 0) == 2:
        tip = int(transaction.max_priority_fee_per_gas)
        return min(int(transaction.max_fee_per_gas), tip + _base_fee(mined))
    return int(transaction.gas_price)


def _receipt(mined: Mined) -> dict[str, Any]:
    transaction: Any = mined.transaction
    receipt: Any = mined.receipt
    contract = None
    if not transaction.to:
        contract = to_checksum_address(keccak(rlp.encode([transaction.sender, transaction.nonce]))[12:])
    return {
        "transactionHash": _hex(transaction.hash),
        "type": hex(getattr(transaction, "type_id", None) or 0),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "contractAddress": contract,
        "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
        "gasUsed": hex(receipt.gas_used),
        "cumulativeGasUsed": hex(receipt.gas_used),
        "effectiveGasPrice": hex(_effective_price(mined)),
        "logsBloom": f"0x{mined.block.header.bloom:0512x}",
        "logs": _logs(mined),
    } | _place(mined)


def _logs(mined: Mined) -> list[dict[str, Any]]:
    transaction: Any = mined.transaction
    return [
        {
            "address": to_checksum_address(log.address),
            "topics": [f"0x{topic:064x}" for topic in log.topics],
            "data": _hex(log.data),
            "logIndex": hex(index),
            "transactionHash": _hex(transaction.hash),
            "removed": False,
        }
        | _place(mined)
        for index, log in enumerate(mined.logs)
    ]
