"""What the outbox and the follower ask of a node. `Rpc` is one; tests put a simulated chain in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .rpc import Call, Head, TxReceipt
from .store import LogRecord


class ChainAccess(Protocol):
    """Methods as `Rpc` documents them; every one may raise RpcError."""

    async def chain_id(self) -> int: ...  # noqa: D102
    async def head(self) -> Head: ...  # noqa: D102
    async def block(self, number: int) -> Head | None: ...  # noqa: D102
    async def nonce(self, account: bytes, at: int | None = None) -> int: ...  # noqa: D102
    async def balance(self, account: bytes) -> int: ...  # noqa: D102
    async def call(self, call: Call, at: int | None = None) -> bytes: ...  # noqa: D102
    async def estimate_gas(self, call: Call) -> int: ...  # noqa: D102
    async def priority_fee(self) -> int: ...  # noqa: D102
    async def send_raw(self, raw: bytes) -> None: ...  # noqa: D102
    async def knows(self, tx_hash: bytes) -> bool: ...  # noqa: D102
    async def receipt(self, tx_hash: bytes) -> TxReceipt | None: ...  # noqa: D102
    async def transactions_from(self, number: int, sender: bytes) -> dict[int, bytes]: ...  # noqa: D102


class LogAccess(Protocol):
    """The part that the log follower needs."""

    async def head(self) -> Head: ...  # noqa: D102
    async def block(self, number: int) -> Head | None: ...  # noqa: D102
    async def logs(self, first: int, last: int, addresses: Sequence[bytes]) -> list[LogRecord]: ...  # noqa: D102
