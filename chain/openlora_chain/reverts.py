"""Revert data into names: custom errors by the ABIs given, `Error(string)` and `Panic(uint256)`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

ERROR_STRING = bytes.fromhex("08c379a0")
PANIC = bytes.fromhex("4e487b71")

PASSING = frozenset({"EnforcedPause", "ReentrancyGuardReentrantCall", "FailedCall"})
"""Errors that another time may not come: the intent waits and tries again. Callers add those of their contracts."""


@dataclass(frozen=True, slots=True)
class Revert:
    """Why a call was refused. `permanent`: a custom error that was decoded and does not pass with time."""

    name: str
    arguments: tuple[Any, ...] = ()
    permanent: bool = False

    def __str__(self) -> str:
        return f"{self.name}({', '.join(_show(argument) for argument in self.arguments)})"


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    types: tuple[str, ...]


class ErrorTable:
    """Selector → custom error, from the ABIs of every contract that a call may reach."""

    def __init__(self, abis: Iterable[Iterable[Mapping[str, Any]]], passing: frozenset[str] = PASSING) -> None:
        self._passing = passing
        self._shapes = {
            _selector(entry): _Shape(entry["name"], tuple(_type(item) for item in entry["inputs"]))
            for abi in abis
            for entry in abi
            if entry["type"] == "error"
        }

    def explain(self, data: bytes) -> Revert:
        """The error that this revert data stands for. Never raises: what cannot be decoded is named by its bytes."""
        selector, body = data[:4], data[4:]
        try:
            if selector == ERROR_STRING:
                return Revert("Error", decode(["string"], body))
            if selector == PANIC:
                return Revert("Panic", decode(["uint256"], body))
            if shape := self._shapes.get(selector):
                return Revert(shape.name, decode(list(shape.types), body), permanent=shape.name not in self._passing)
        except (DecodingError, OverflowError, UnicodeDecodeError):
            pass
        return Revert(f"0x{selector.hex()}" if data else "no reason")


def _selector(entry: Mapping[str, Any]) -> bytes:
    signature = f"{entry['name']}({','.join(_type(item) for item in entry['inputs'])})"
    return bytes(keccak(text=signature)[:4])


def _type(item: Mapping[str, Any]) -> str:
    """The canonical ABI type: a tuple is written out by its components."""
    name: str = item["type"]
    if not name.startswith("tuple"):
        return name
    return f"({','.join(_type(part) for part in item['components'])}){name.removeprefix('tuple')}"


def _show(argument: object) -> str:
    text = f"0x{argument.hex()}" if isinstance(argument, bytes) else str(argument)
    return text if len(text) <= 80 else text[:77] + "..."
