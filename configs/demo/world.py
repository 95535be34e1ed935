"""What the demo's node and payer agree on beforehand: names, prices, and a stream to speak over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from rich.console import Console

from openlora_node.journal import EscrowSnapshot
from openlora_node.protocol.crypto import Address, keccak256
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.messages import INFER, InferMessage
from openlora_node.protocol.pipeline import Adapter, Pipeline

DOMAIN = Domain(chain_id=31337, verifying_contract=Address(keccak256(b"no settlement contract yet")[:20]))
NODE_ID = keccak256(b"demo node")
BASE, POETRY, BREVITY = (keccak256(label) for label in (b"demo base", b"demo adapter 1", b"demo adapter 2"))
PIPELINE = Pipeline.of(
    BASE,
    Adapter(id=POETRY, terms_version=1, weight=7_000),
    Adapter(id=BREVITY, terms_version=1, weight=3_000),
    base_terms_version=1,
)
MAX_TOKENS = 64
ASSUMED_ESCROW = EscrowSnapshot(balance=10**17)
"""There is no chain in the demo yet to ask."""

console = Console(highlight=False, markup=False, soft_wrap=True)


def say(who: str, what: str) -> None:
    """One line."""
    console.print(f"{who:<8}{what}".rstrip())


def now() -> int:
    """Unix seconds."""
    return int(time.time())


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[InferMessage]:
    """Messages from a stream until it ends."""
    decoder = FrameDecoder(INFER.max_frame)
    while data := await reader.read(65_536):
        for payload in decoder.feed(data):
            yield INFER.decode(payload)
    decoder.finish()
