"""What the contracts' classes share: encoding a call, asking the chain, and its refusals as ChainError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from ..compiled import compiled, error_table
from ..deployment import Deployment
from ..errors import ChainError, ChainErrorCode, Reverted
from ..rpc import Call, Rpc


@dataclass(frozen=True, slots=True)
class Calldata:
    """A call that somebody may sign: what `--calldata` prints and what an intent carries."""

    to: bytes
    data: bytes
    value: int = 0


class Contract:
    """One contract at one address."""

    name: ClassVar[str]

    def __init__(self, rpc: Rpc, deployment: Deployment) -> None:
        self.address = deployment.contracts[self.name].address
        self._rpc = rpc
        self._web3 = rpc.web3.eth.contract(address=to_checksum_address(self.address), abi=compiled(self.name).abi)
        self._outputs = {
            entry["name"]: [_type(item) for item in entry["outputs"]]
            for entry in compiled(self.name).abi
            if entry["type"] == "function"
        }

    def __repr__(self) -> str:
        return f"{self.name}(0x{self.address.hex()})"

    def _write(self, function: str, *arguments: Any, value: int = 0) -> Calldata:
        encoded = self._web3.encode_abi(function, args=[_argument(argument) for argument in arguments])
        return Calldata(self.address, bytes.fromhex(encoded.removeprefix("0x")), value)

    async def _read(self, function: str, *arguments: Any, at: int | None = None) -> tuple[Any, ...]:
        call = Call(bytes(20), self.address, self._write(function, *arguments).data)
        try:
            output = await self._rpc.call(call, at)
        except Reverted as error:
            raise ChainError(
                ChainErrorCode.REVERTED, f"{self.name}.{function} refused: {error_table().explain(error.data)}"
            ) from None
        try:
            return tuple(_plain(value) for value in decode(self._outputs[function], output))
        except DecodingError:
            raise ChainError(
                ChainErrorCode.CONTRACT_MISMATCH, f"{self.name}.{function} gave no {self._outputs[function]}"
            ) from None


def _type(item: dict[str, Any]) -> str:
    name: str = item["type"]
    if not name.startswith("tuple"):
        return name
    return f"({','.join(_type(part) for part in item['components'])}){name.removeprefix('tuple')}"


def _argument(value: Any) -> Any:
    """Addresses are bytes with us and checksummed text with web3."""
    if isinstance(value, bytes) and len(value) == 20:
        return to_checksum_address(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_argument(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    """And back: eth-abi gives addresses as text."""
    if isinstance(value, str) and len(value) == 42 and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
