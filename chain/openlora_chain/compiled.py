"""The compiled contracts that ship with this package: ABI and bytecode, read once. Using them needs no compiler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from .reverts import PASSING, ErrorTable

OURS = ("NodeRegistry", "ArtifactRegistry", "Settlement", "Credits", "ReceiptAnchor")
DEPLOYED = ("TimelockController", *OURS)
"""In the order of deployment. The timelock owns the Settlement."""
PASSING_OURS = frozenset(
    {"StillThawing", "UnknownPipeline", "UnauthorizedSigner", "NodeNotRegistered", "PaymentRefused"}
)
"""Refusals that a later transaction or time can lift: an intent that meets one waits and tries again."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One contract. `deployed` is its runtime code with the immutables, at `immutables` (offset, length), zeroed."""

    name: str
    abi: tuple[dict[str, Any], ...]
    creation: bytes
    deployed: bytes
    immutables: tuple[tuple[int, int], ...]

    def creation_data(self, *arguments: object) -> bytes:
        """Creation code and constructor arguments, as a creating transaction carries them."""
        inputs: list[dict[str, Any]] = next(
            (entry["inputs"] for entry in self.abi if entry["type"] == "constructor"), []
        )
        return self.creation + encode([item["type"] for item in inputs], arguments)

    def matches(self, code: bytes) -> bool:
        """Whether code on a chain is this contract, whatever values its immutables have."""
        return len(code) == len(self.deployed) and self._without_immutables(code) == self._without_immutables(
            self.deployed
        )

    def _without_immutables(self, code: bytes) -> bytes:
        blank = bytearray(code)
        for offset, length in self.immutables:
            blank[offset : offset + length] = bytes(length)
        return bytes(blank)


@cache
def compiled(name: str) -> Compiled:
    """The contract of this name."""
    document = json.loads(resources.files(__package__).joinpath("artifacts", f"{name}.json").read_text("utf-8"))
    return Compiled(
        name=name,
        abi=tuple(document["abi"]),
        creation=bytes.fromhex(document["bytecode"].removeprefix("0x")),
        deployed=bytes.fromhex(document["deployedBytecode"].removeprefix("0x")),
        immutables=tuple((offset, length) for offset, length in document["immutables"]),
    )


@cache
def error_table() -> ErrorTable:
    """Every custom error of our contracts."""
    return ErrorTable((compiled(name).abi for name in OURS), PASSING | PASSING_OURS)


def create_address(sender: bytes, nonce: int) -> bytes:
    """The address of the contract that `sender` creates with its transaction `nonce`."""
    number = b"" if nonce == 0 else nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    item = number if len(number) == 1 and number[0] < 0x80 else bytes((0x80 + len(number),)) + number
    payload = bytes((0x80 + 20,)) + sender + item
    return bytes(keccak(bytes((0xC0 + len(payload),)) + payload)[12:])
