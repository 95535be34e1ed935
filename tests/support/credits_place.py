"""A dataset whose use is credited: a base that passes royalties on to it, three contributors, a node that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora_chain.wallet import Wallet
from openlora_node.artifacts.shares import ShareTable
from openlora_node.attribution.indexed import UNIT
from openlora_node.attribution.periods import DatasetSums
from openlora_node.journal.pipelines import KnownPipeline
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.pipeline import Pipeline

from .chain_world import BASE, DATASET, ETHER, ChainWorld, artifact_id, fresh_wallet
from .settlement_world import Desk, FixedPeriods, open_desk

RATE = 10**18
TOKENS = 1_000_000
ROYALTIES = RATE
"""Of one voucher more: TOKENS at RATE."""
ASSIGNED = ROYALTIES * 4_000 // 10_000 * 7_500 // 10_000
"""Of them: what the base passes on to the dataset, and what of that goes by use."""


@dataclass
class Place:
    """A base that passes royalties on to a dataset of three contributors, served by one node."""

    world: ChainWorld
    desk: Desk
    periods: FixedPeriods
    payer: Wallet
    owner: Wallet
    dataset: bytes
    base: bytes
    contributors: list[bytes]
    table: ShareTable
    vouchers: int = 0

    async def serve(self, epoch: int, *parts: int) -> None:
        """One more epoch: a voucher, redeemed and shared out, and receipts that credit contributors with these parts.

        Parts are millionths of the epoch's assigned wei.
        """
        self.vouchers += 1
        pipeline = KnownPipeline(Pipeline.of(self.base, base_terms_version=1), (RATE,))
        await self.desk.voucher(self.payer, pipeline, TOKENS * self.vouchers, 0)
        await self.desk.catch_up()
        await self.desk.service.redeem_now()
        await self.desk.send()
        await self.world.send(self.payer, self.world.settlement.harvest_many([(self.desk.node, pipeline.pipeline.id)]))
        sums = DatasetSums(ROYALTIES * 4_000 // 10_000)
        for owner, part in zip(self.contributors, parts, strict=False):
            sums.credits[owner] = ASSIGNED * part * UNIT // 10**6
        self.periods.epochs[epoch] = {self.dataset: sums}
        await self.tell_time()

    async def tell_time(self) -> None:
        """The node's clock is the chain's."""
        self.desk.now = (await self.world.rpc.head()).timestamp

    async def decide(self) -> int:
        """Have the node decide what it can; how many transactions that took."""
        await self.desk.catch_up()
        queued = await self.desk.service.decide_now()
        await self.desk.send()
        return queued

    async def pass_time(self, seconds: int) -> None:
        """Of the chain and of the node."""
        await self.world.pass_time(seconds)
        await self.tell_time()

    async def in_force(self) -> tuple[int, int, bytes]:
        """(epoch, total, root) of the credits in force."""
        active = await self.world.credits.active_of(self.desk.node, self.dataset)
        return active.epoch, active.total, active.root

    async def shares_pool(self) -> int:
        """What went by static shares so far."""
        return (await self.world.settlement.share_pool_of(self.dataset, self.table.root)).total


@asynccontextmanager
async def place(world: ChainWorld, folder: Path, label: str, *, confirmations: int = 1) -> AsyncIterator[Place]:
    """Everything registered, nothing served."""
    key, payer, owner = (fresh_wallet(f"credits {label} {name}") for name in ("key", "payer", "owner"))
    for wallet in (key, payer, owner):
        await world.fund(wallet.address, 20 * ETHER)
    contributors = sorted(fresh_wallet(f"credits {label} contributor {number}").address for number in range(3))
    table = ShareTable.of(zip(map(Address, contributors), (5_000, 3_000, 2_000), strict=True))
    base, dataset = artifact_id(f"credits {label} base"), artifact_id(f"credits {label} dataset")
    await world.register_artifact(owner, dataset, DATASET, shares_root=table.root, credits_bps=7_500)
    await world.register_artifact(owner, base, BASE, RATE, components=[(dataset, 4_000)])
    node = await world.register_node(key)
    await world.send(payer, world.settlement.deposit(node, 10 * ETHER))
    periods = FixedPeriods()
    async with open_desk(world, folder, key, node, confirmations=confirmations, periods=periods) as desk:
        yield Place(world, desk, periods, payer, owner, dataset, base, contributors, table)
