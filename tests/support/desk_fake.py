"""A command's chain without a chain: contracts that encode as the real ones do and answer what a test tells them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

from openlora_chain.bindings import ArtifactRegistry, Settlement
from openlora_chain.compiled import DEPLOYED
from openlora_chain.deployment import Deployed, Deployment
from openlora_chain.rpc import Rpc
from openlora_node.cli.chaindesk import ChainDesk
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Domain

DEPLOYMENT = Deployment(
    "tests", 31_337, 1, {name: Deployed(bytes([number]) * 20, bytes(32)) for number, name in enumerate(DEPLOYED, 1)}
)
DOMAIN = Domain(chain_id=DEPLOYMENT.chain_id, verifying_contract=Address(DEPLOYMENT.settlement))
NOW = 1_800_000_000


def fake_desk(answers: Mapping[str, Any]) -> Callable[[Any], AbstractAsyncContextManager[ChainDesk]]:
    """An `open_desk` whose contracts' reads, by the name in Solidity, answer with these tuples."""

    async def read(function: str, *_: Any, **__: Any) -> Any:
        return answers[function]

    async def head() -> Any:
        return SimpleNamespace(timestamp=NOW)

    @asynccontextmanager
    async def open_desk(options: Any) -> AsyncIterator[ChainDesk]:
        async with Rpc("http://127.0.0.1:9") as rpc:
            parts: dict[str, Any] = {
                "artifacts": ArtifactRegistry(rpc, DEPLOYMENT), "settlement": Settlement(rpc, DEPLOYMENT),
            }  # fmt: skip
            for contract in parts.values():
                contract._read = read
            clock: Any = SimpleNamespace(head=head)
            nothing: Any = None
            yield ChainDesk(options.config, clock, DEPLOYMENT, nothing, credits=nothing, **parts)

    return open_desk
