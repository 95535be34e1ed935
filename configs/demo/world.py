"""What the demo's node and payer agree on beforehand: names, prices, and a stream to speak over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from rich.console import Console

from openlora_chain.devnet.accounts import dev_wallet
from openlora_node.protocol.crypto import keccak256
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.messages import INFER, InferMessage
from openlora_node.protocol.pipeline import Adapter, Pipeline

BASE, POETRY, BREVITY = (keccak256(label) for label in (b"demo base", b"demo adapter 1", b"demo adapter 2"))
PIPELINE = Pipeline.of(
    BASE,
    Adapter(id=POETRY, terms_version=1, weight=7_000),
    Adapter(id=BREVITY, terms_version=1, weight=3_000),
    base_terms_version=1,
)
ROYALTY_RATES = {BASE: 10**13, POETRY: 5 * 10**13, BREVITY: 2 * 10**13}
MAX_TOKENS = 64

NODE_KEY, PAYER_KEY, BASE_OWNER = dev_wallet("operator"), dev_wallet("payer"), dev_wallet("base-owner")
ADAPTER_OWNERS = {POETRY: dev_wallet("adapter-owner"), BREVITY: dev_wallet("adapter-owner-2")}


@dataclass(frozen=True)
class World:
    """What the chain says: the domain to sign under, the node's id, what a payer's escrow with it holds."""

    domain: Domain
    node: bytes
    escrow: Callable[[bytes], Awaitable[int]]


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
