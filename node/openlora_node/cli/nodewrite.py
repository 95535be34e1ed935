"""Chain writes by the node's own key while the node runs: it sends them itself, because it counts the key's nonces."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes

if TYPE_CHECKING:
    from ..config.schema import Config
    from .chainwrite import Step

KIND = "cli"
LOOK_S = 0.5
MINED_TIMEOUT_S = 300.0
ARRIVED = frozenset({"mined", "final"})
ENDED_BADLY = frozenset({"failed", "cancelled"})


async def runs_with(config: Config, sender: bytes) -> bool:
    """Whether a node runs here whose key is the sender's."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    from ..api.client import ControlClient

    try:
        if keystore.address_of(config.node_keystore) != sender:
            return False
        async with ControlClient(config.control_socket, timeout_s=5) as node:
            await node.get("/status")
    except ChainError:
        return False
    except OpenLoraError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return False
        raise
    return True


async def send_through(socket: Path, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Have the running node send the steps, each once the one before is mined. Raises OpenLoraError CHAIN_FAILED."""
    from ..api.client import ControlClient

    asked_at = time.time_ns().to_bytes(8, "big")
    rows: list[dict[str, Any]] = []
    async with ControlClient(socket) as node:
        for step in steps:
            subject = hashlib.sha256(step.call.data).digest() + asked_at
            queued = await node.post(
                "/transactions",
                kind=KIND,
                subject=format_bytes(subject),
                to=format_address(step.call.to),
                data=format_bytes(step.call.data),
                value=str(step.call.value),
            )
            state = await _arrived(node, queued["id"], step.label)
            rows.append({"step": step.label, "id": queued["id"], "state": state})
    return rows


async def _arrived(node: Any, identity: str, label: str) -> str:
    """Wait until the transaction is in a block."""
    try:
        async with asyncio.timeout(MINED_TIMEOUT_S):
            while True:
                found = next(
                    (row for row in await node.get("/transactions", limit=1_000) if row["id"] == identity), None
                )
                if found is not None and found["state"] in ARRIVED:
                    return str(found["state"])
                if found is not None and found["state"] in ENDED_BADLY:
                    raise OpenLoraError(
                        ErrorCode.CHAIN_FAILED, f"the node could not {label}: {found['note'] or found['state']}"
                    )
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED,
            f"not mined in {MINED_TIMEOUT_S:.0f} s, it may still come: `openlora tx show {identity[2:14]}`",
        ) from None
