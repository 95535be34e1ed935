"""Finds which nodes redeemed which pipelines, from the chain's events: what an owner's royalties may wait in."""

from __future__ import annotations

from collections.abc import Callable

from openlora_chain.deployment import Deployment
from openlora_chain.errors import ChainErrorCode, RpcError
from openlora_chain.events import DebtCollected, EventTable, VoucherRedeemed
from openlora_chain.rpc import Rpc

Source = tuple[bytes, bytes]
"""(node id, pipeline id)."""
MAX_SOURCES = 100_000


async def find_sources(
    rpc: Rpc,
    deployment: Deployment,
    first: int,
    *,
    max_range: int,
    on_block: Callable[[int, int], None] = lambda _block, _head: None,
) -> list[Source]:
    """Every (node, pipeline) that brought royalties from block `first` on. `on_block` hears of the progress.

    Raises RpcError; a range that an endpoint refuses is halved.
    """
    table = EventTable(deployment, (VoucherRedeemed, DebtCollected))
    head = (await rpc.head()).number
    found: dict[Source, None] = {}
    at, width = max(first, deployment.block), max_range
    while at <= head and len(found) < MAX_SOURCES:
        last = min(at + width - 1, head)
        try:
            logs = await rpc.logs(at, last, table.addresses, table.topics)
        except RpcError as error:
            if error.code is not ChainErrorCode.RPC_FAILED or width == 1:
                raise
            width = max(width // 2, 1)
            continue
        for event in table.decode_all(logs):
            if isinstance(event, VoucherRedeemed | DebtCollected) and event.royalties_paid:
                found[event.node, event.pipeline] = None
        at, width = last + 1, min(width * 2, max_range)
        on_block(last, head)
    return list(found)
