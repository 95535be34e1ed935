"""One JSON-RPC node over HTTP: typed answers, time-outs, retries. Trusts no answer's shape.

Every method raises RpcError (RPC_UNREACHABLE, RPC_RATE_LIMITED, RPC_FAILED, RPC_INCONSISTENT) or Reverted and nothing
else. Repeating any of them is harmless: a transaction sent twice is one transaction.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from web3 import AsyncWeb3
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from .errors import ChainErrorCode, Reverted, RpcError
from .store import BlockRef, LogRecord

REVERT_CODE = 3
LATEST = "latest"
MAX_ANSWER = 64 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """A block header, as far as we use it. `base_fee` is wei per gas, `timestamp` unix seconds."""

    number: int
    hash: bytes
    parent: bytes
    timestamp: int
    base_fee: int

    @property
    def ref(self) -> BlockRef:
        """Number and hash."""
        return BlockRef(self.number, self.hash)


@dataclass(frozen=True, slots=True)
class TxReceipt:
    """Where a transaction stands and how it ended. `contract` is set by a creation; `gas_price` is wei, 0 if unsaid."""

    tx_hash: bytes
    block: BlockRef
    succeeded: bool
    gas_used: int
    contract: bytes | None
    logs: tuple[LogRecord, ...]
    gas_price: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A message to simulate. `to` None creates a contract."""

    sender: bytes
    to: bytes | None
    data: bytes = b""
    value: int = 0
    gas: int | None = None

    def parameters(self) -> dict[str, str]:
        """The JSON-RPC transaction object."""
        fields = {"from": _hex(self.sender), "data": _hex(self.data), "value": hex(self.value)}
        if self.to is not None:
            fields["to"] = _hex(self.to)
        if self.gas is not None:
            fields["gas"] = hex(self.gas)
        return fields


class _Provider(AsyncJSONBaseProvider):
    """Lets AsyncWeb3 speak through the same session, time-out and retries as everything else."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__()
        self._rpc = rpc

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """web3's way to call: the answer with its error object, if any, still in it."""
        response: RPCResponse = await self._rpc.exchange(method, params)
        return response


class Rpc:
    """A connection to one node, or to the first of several that answers. `web3` shares it with the contract bindings.

    Of several, the next one is taken when one does not answer or asks to slow down, and kept while it works.
    """

    def __init__(
        self, url: str | Sequence[str], *, timeout_s: float = 10.0, tries: int = 4, first_pause_s: float = 0.2
    ) -> None:
        self._urls = (url,) if isinstance(url, str) else tuple(url)
        if not self._urls:
            raise ValueError("an Rpc needs a URL")
        self.endpoint = 0
        """Which of the URLs is in use: after a change, what was checked of the chain is to be checked again."""
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        self._tries = tries
        self._first_pause_s = first_pause_s
        self.web3: AsyncWeb3[AsyncJSONBaseProvider] = AsyncWeb3(_Provider(self))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def skip(self) -> None:
        """Go on with the next of the URLs."""
        self.endpoint = (self.endpoint + 1) % len(self._urls)

    async def request(self, method: str, *params: object) -> Any:
        """The `result` of one call. Raises RpcError, Reverted."""
        response = await self.exchange(method, params)
        if (failure := response.get("error")) is not None:
            raise _failure(failure)
        return response["result"]

    async def exchange(self, method: str, params: Sequence[object]) -> Any:
        """The answer to one call, retried with growing pauses while the node is unreachable or asks to slow down."""
        pause = self._first_pause_s
        for attempt in range(self._tries):
            try:
                return await self._exchange_once(method, params)
            except RpcError as error:
                transient = error.code in (ChainErrorCode.RPC_UNREACHABLE, ChainErrorCode.RPC_RATE_LIMITED)
                if transient:
                    self.skip()
                if not transient or attempt == self._tries - 1:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the loop returns or raises")

    async def _exchange_once(self, method: str, params: Sequence[object]) -> Any:
        call = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.post(self._urls[self.endpoint], json=call, allow_redirects=False) as http:
                status, body = http.status, await http.content.read(MAX_ANSWER + 1)
                while len(body) <= MAX_ANSWER and (more := await http.content.read(MAX_ANSWER)):
                    body += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = type(error).__name__
            raise RpcError(
                ChainErrorCode.RPC_UNREACHABLE, f"no answer from the RPC ({reason}); see chain.rpc_urls"
            ) from None
        return _parse(status, body)

    async def chain_id(self) -> int:
        """EIP-155 chain id."""
        return _integer(await self.request("eth_chainId"))

    async def head(self) -> Head:
        """The newest block."""
        head = _head(await self.request("eth_getBlockByNumber", LATEST, False))
        if head is None:
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, "the RPC has no newest block")
        return head

    async def block(self, number: int) -> Head | None:
        """The canonical block at this height, None above the head."""
        head = _head(await self.request("eth_getBlockByNumber", hex(number), False))
        if head is not None and head.number != number:
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, "the RPC answered with another block than was asked for")
        return head

    async def nonce(self, account: bytes, at: int | None = None) -> int:
        """How many transactions of the account are in the chain, at the head or at a height."""
        return _integer(await self.request("eth_getTransactionCount", _hex(account), _at(at)))

    async def balance(self, account: bytes) -> int:
        """Wei at the head."""
        return _integer(await self.request("eth_getBalance", _hex(account), LATEST))

    async def code(self, account: bytes) -> bytes:
        """Deployed bytecode at the head."""
        return _bytes(await self.request("eth_getCode", _hex(account), LATEST))

    async def call(self, call: Call, at: int | None = None) -> bytes:
        """Simulate; returns the output. Raises Reverted with the revert data."""
        return _bytes(await self.request("eth_call", call.parameters(), _at(at)))

    async def estimate_gas(self, call: Call) -> int:
        """Gas that the call needs at the head. Raises Reverted."""
        return _integer(await self.request("eth_estimateGas", call.parameters()))

    async def priority_fee(self) -> int:
        """The tip that the node suggests, in wei per gas."""
        return _integer(await self.request("eth_maxPriorityFeePerGas"))

    async def send_raw(self, raw: bytes) -> None:
        """Hand over a signed transaction."""
        await self.request("eth_sendRawTransaction", _hex(raw))

    async def knows(self, tx_hash: bytes) -> bool:
        """Whether the node holds the transaction, pending or mined."""
        return await self.request("eth_getTransactionByHash", _hex(tx_hash)) is not None

    async def receipt(self, tx_hash: bytes) -> TxReceipt | None:
        """The receipt of a mined transaction, checked to be the one asked for."""
        answer = await self.request("eth_getTransactionReceipt", _hex(tx_hash))
        if answer is None:
            return None
        fields = _object(answer)
        if _bytes(fields.get("transactionHash")) != tx_hash:
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, "the RPC answered with another receipt than was asked for")
        contract = fields.get("contractAddress")
        return TxReceipt(
            tx_hash=tx_hash,
            block=BlockRef(_integer(fields.get("blockNumber")), _bytes(fields.get("blockHash"), 32)),
            succeeded=_integer(fields.get("status")) == 1,
            gas_used=_integer(fields.get("gasUsed")),
            contract=None if contract is None else _bytes(contract, 20),
            logs=tuple(_log_record(log) for log in _array(fields.get("logs"))),
            gas_price=_integer(fields.get("effectiveGasPrice", 0)),
        )

    async def mined(self, tx_hash: bytes, timeout_s: float = 300.0) -> TxReceipt:
        """Wait for the receipt. Raises RpcError RPC_UNREACHABLE when it does not come in time."""
        pause = 0.01
        try:
            async with asyncio.timeout(timeout_s):
                while (receipt := await self.receipt(tx_hash)) is None:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 2.0)
                return receipt
        except TimeoutError:
            message = f"0x{tx_hash.hex()} was not mined in {timeout_s:.0f} s: look for it, it may still come"
            raise RpcError(ChainErrorCode.RPC_UNREACHABLE, message) from None

    async def transactions_from(self, number: int, sender: bytes) -> dict[int, bytes]:
        """Nonce → hash of the sender's transactions in the block at this height."""
        block = _object(await self.request("eth_getBlockByNumber", hex(number), True))
        mine = [tx for tx in map(_object, _array(block.get("transactions"))) if _bytes(tx.get("from")) == sender]
        return {_integer(tx.get("nonce")): _bytes(tx.get("hash"), 32) for tx in mine}

    async def logs(
        self, first: int, last: int, addresses: Sequence[bytes], events: Sequence[bytes] = ()
    ) -> list[LogRecord]:
        """Logs of these contracts in blocks first..last, in chain order; with `events` those of these topics alone."""
        query: dict[str, object] = {
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "address": [_hex(address) for address in addresses],
        }
        if events:
            query["topics"] = [[_hex(topic) for topic in events]]
        answer = await self.request("eth_getLogs", query)
        records = [_log_record(log) for log in _array(answer)]
        return sorted(records, key=lambda record: (record.block.number, record.index))


def _parse(status: int, body: bytes) -> Any:
    """The JSON-RPC answer in an HTTP answer. Many nodes send error objects with a status of 4xx."""
    if status == 429:
        raise RpcError(ChainErrorCode.RPC_RATE_LIMITED, ChainErrorCode.RPC_RATE_LIMITED.remedy)
    try:
        answer = json.loads(body) if len(body) <= MAX_ANSWER else None
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and (answer.get("error") is not None or (status == 200 and "result" in answer)):
        return answer
    if status != 200:
        raise RpcError(ChainErrorCode.RPC_UNREACHABLE, f"the RPC answered with HTTP status {status}")
    raise RpcError(ChainErrorCode.RPC_FAILED, "the RPC's answer is no JSON-RPC")


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _at(number: int | None) -> str:
    return LATEST if number is None else hex(number)


def _failure(failure: object) -> RpcError | Reverted:
    """The error object of an answer. Nodes put revert data at `data`, some at `data.data`."""
    if not isinstance(failure, dict):
        return RpcError(ChainErrorCode.RPC_FAILED, str(failure)[:200])
    code, message, data = failure.get("code"), str(failure.get("message", ""))[:200], failure.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    if isinstance(data, str) and data.startswith("0x") and (code == REVERT_CODE or len(data) >= 10):
        try:
            return Reverted(bytes.fromhex(data[2:]))
        except ValueError:
            pass
    if code == REVERT_CODE:
        return Reverted(b"", "reverted without a reason")
    return RpcError(
        ChainErrorCode.RPC_RATE_LIMITED if code in (429, -32005, -32029) else ChainErrorCode.RPC_FAILED,
        f"the RPC refused: {message}",
        rpc_code=code if isinstance(code, int) else None,
    )


def _shape() -> RpcError:
    return RpcError(ChainErrorCode.RPC_FAILED, "the RPC's answer lacks a field or has one of the wrong type")


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise _shape()


def _bytes(value: object, width: int | None = None) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            raise _shape() from None
        if width is None or len(data) == width:
            return data
    raise _shape()


def _object(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    raise _shape()


def _array(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise _shape()


def _head(answer: object) -> Head | None:
    if answer is None:
        return None
    fields = _object(answer)
    return Head(
        number=_integer(fields.get("number")),
        hash=_bytes(fields.get("hash"), 32),
        parent=_bytes(fields.get("parentHash"), 32),
        timestamp=_integer(fields.get("timestamp")),
        base_fee=_integer(fields.get("baseFeePerGas", 0)),
    )


def _log_record(answer: object) -> LogRecord:
    fields = _object(answer)
    return LogRecord(
        block=BlockRef(_integer(fields.get("blockNumber")), _bytes(fields.get("blockHash"), 32)),
        index=_integer(fields.get("logIndex")),
        tx_hash=_bytes(fields.get("transactionHash"), 32),
        address=_bytes(fields.get("address"), 20),
        topics=tuple(_bytes(topic, 32) for topic in _array(fields.get("topics"))),
        data=_bytes(fields.get("data")),
    )
