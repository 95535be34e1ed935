"""Signing by somebody else: the transaction goes out as JSON, the signed raw bytes come in and are checked.

For cold owners: a hardware wallet's software, an air-gapped machine, a person who copies text. Whatever comes back is
either exactly the transaction that was asked for, signed by the address expected, or an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from .errors import ChainError, ChainErrorCode
from .transaction import SignedTransaction, UnsignedTransaction

Exchange = Callable[[str], Awaitable[str]]
"""JSON of the unsigned transaction in, 0x-hex of the signed raw transaction out."""

COMMAND_TIMEOUT_S = 300.0
MAX_RAW_HEX = 300_000


def describe(transaction: UnsignedTransaction, sender: bytes) -> str:
    """The transaction as JSON, with the field names of `eth_signTransaction`; numbers are 0x-hex."""
    fields = {
        "type": "0x2",
        "chainId": hex(transaction.chain_id),
        "from": f"0x{sender.hex()}",
        "nonce": hex(transaction.nonce),
        "value": hex(transaction.value),
        "data": f"0x{transaction.data.hex()}",
        "gas": hex(transaction.gas),
        "maxFeePerGas": hex(transaction.max_fee),
        "maxPriorityFeePerGas": hex(transaction.priority_fee),
    }
    if transaction.to is not None:
        fields["to"] = f"0x{transaction.to.hex()}"
    return json.dumps(fields, indent=2)


class ExternalSigner:
    """A TransactionSigner whose key is elsewhere. `address` is 20 bytes."""

    def __init__(self, address: bytes, exchange: Exchange) -> None:
        self.address = address
        self._exchange = exchange

    def __repr__(self) -> str:
        return f"ExternalSigner(0x{self.address.hex()})"

    async def sign_transaction(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Ask, then check. Raises ChainError SIGNER_REFUSED."""
        answer = (await self._exchange(describe(transaction, self.address))).strip()
        if len(answer) > MAX_RAW_HEX:
            raise _refused("more than a transaction")
        try:
            raw = bytes.fromhex(answer.removeprefix("0x"))
            signed = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            sender = bytes.fromhex(Account.recover_transaction(raw).removeprefix("0x"))
        except Exception:  # noqa: BLE001 - the decoder raises whatever its layers raise on foreign bytes
            raise _refused("bytes that are no signed EIP-1559 transaction") from None
        if sender != self.address:
            raise _refused(f"a transaction of 0x{sender.hex()}")
        for name, wanted in _signed_fields(transaction).items():
            if _plain(signed.get(name)) != wanted:
                raise _refused(f"a transaction with another {name}")
        return SignedTransaction(raw, bytes(keccak(raw)))


def command_exchange(argv: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Exchange:
    """An exchange with a program: JSON on its standard input, the raw transaction on its standard output."""

    async def exchange(request: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        except OSError:
            raise _refused("nothing: its command cannot be run") from None
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate(request.encode())
        except TimeoutError:
            raise _refused("nothing in time") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise _refused(f"exit status {process.returncode}")
        return output.decode("ascii", "replace")

    return exchange


def _signed_fields(transaction: UnsignedTransaction) -> dict[str, int | bytes]:
    return {
        "type": 2,
        "chainId": transaction.chain_id,
        "nonce": transaction.nonce,
        "to": transaction.to or b"",
        "value": transaction.value,
        "data": transaction.data,
        "gas": transaction.gas,
        "maxFeePerGas": transaction.max_fee,
        "maxPriorityFeePerGas": transaction.priority_fee,
    }


def _plain(value: object) -> object:
    if isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    return bytes(value) if isinstance(value, bytes) else value


def _refused(what: str) -> ChainError:
    return ChainError(ChainErrorCode.SIGNER_REFUSED, f"the external signer gave {what}: ask it again")
