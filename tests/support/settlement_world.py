"""A node's settlement on a real chain: its journal, outbox and view, with vouchers of payers put in by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openlora_chain.compiled import error_table
from openlora_chain.outbox import Outbox
from openlora_chain.policy import Rules
from openlora_chain.rpc import Rpc
from openlora_chain.wallet import Wallet
from openlora_node.attribution.periods import DatasetSums
from openlora_node.chainview import ChainParts, ChainView
from openlora_node.chainview.memory import MemoryLogs
from openlora_node.config.schema import Settlement as SettlementOptions
from openlora_node.journal import Binding, Journal, LedgerKey, VoucherEntry
from openlora_node.journal.outbox import JournalOutbox
from openlora_node.journal.pipelines import KnownPipeline, remember
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.structs import Voucher
from openlora_node.settlement import Decisions, Sending, SettlementService
from openlora_node.settlement import Rules as Worth
from openlora_node.settlement.credits import CreditTable
from openlora_node.settlement.leaves import pack

from .chain_world import ChainWorld


@dataclass(frozen=True)
class Totals:
    """What an epoch comes to."""

    count: int = 1
    first_seq: int = 1
    last_seq: int = 1
    tokens: int = 1
    compute: int = 1
    royalties: int = 0


@dataclass(frozen=True)
class Root:
    """An epoch's root."""

    number: int
    root: bytes
    totals: Totals = field(default_factory=Totals)


@dataclass
class FixedEpochs:
    """Epochs as a test sets them."""

    roots: dict[int, bytes] = field(default_factory=dict)
    closed: int = -1
    firsts: dict[int, int] = field(default_factory=dict)
    """The least sequence number of an epoch and those after it."""

    def newest_closed(self, now: int) -> int:
        return self.closed

    def next_with_receipts(self, number: int) -> int | None:
        return min((known for known in self.roots if known >= number), default=None)

    def root(self, number: int) -> Root | None:
        return Root(number, self.roots[number]) if number in self.roots else None

    def first_seq(self, number: int) -> int:
        return self.firsts.get(number, 0)


@dataclass
class FixedPeriods:
    """What receipts come to, as a test sets it: epoch → dataset → sums. An epoch lasts a minute."""

    epochs: dict[int, dict[bytes, DatasetSums]] = field(default_factory=dict)
    closed: int = 1_000

    def since(self, first: int, now: int) -> list[tuple[int, dict[bytes, DatasetSums]]]:
        return sorted((number, sums) for number, sums in self.epochs.items() if first <= number <= self.closed)

    def newest_closed(self, now: int) -> int:
        return self.closed

    def epoch_at(self, time: int) -> int:
        return 0


@dataclass
class MemoryLeaves:
    """Tables by the id that they would be fetched by."""

    tables: dict[bytes, CreditTable] = field(default_factory=dict)
    forgotten: list[bytes] = field(default_factory=list)

    async def keep(self, node: bytes, dataset: bytes, epoch: int, table: CreditTable) -> bytes:
        manifest, _, _ = pack(node, dataset, epoch, table)
        self.tables[bytes(manifest.id)] = table
        return bytes(manifest.id)

    async def forget(self, leaves: bytes) -> None:
        self.forgotten.append(leaves)


@dataclass
class Desk:
    """One node's settlement; `now` is the clock that the test moves."""

    world: ChainWorld
    journal: Journal
    parts: ChainParts
    outbox: Outbox
    service: SettlementService
    node: bytes
    key: Wallet
    epochs: FixedEpochs
    now: int
    leaves: MemoryLeaves

    async def voucher(
        self, payer: Wallet, known: KnownPipeline, tokens: int, compute: int, signer: Wallet | None = None
    ) -> LedgerKey:
        """Have the journal hold this as the newest voucher."""
        by = signer or payer
        value = Voucher(
            payer=payer.address,
            node=self.node,
            pipeline_id=known.pipeline.id,
            cumulative_tokens=tokens,
            cumulative_compute=compute,
            reference_digest=bytes(32),
        )
        await self.journal.transact(lambda tx: remember(tx, known.pipeline.id, known))
        worth = known.schedule.value(value)
        await self.journal.advance_voucher(VoucherEntry(value.sign(self.world.domain, by), Address(by.address), worth))
        return LedgerKey(payer.address, self.node, by.address, known.pipeline.id)

    async def catch_up(self) -> None:
        """Have the view see the newest block."""
        while await self.parts.view.step():
            pass

    async def send(self) -> None:
        """Have the outbox send what is queued and see it final."""
        for _ in range(20):
            await self.outbox.step()
            if not await JournalOutbox(self.journal).open_intents(self.key.address, self.world.deployment.chain_id):
                return
            await self.world.mine()
        raise AssertionError(self.outbox.status)

    async def round(self) -> None:
        """A look at the chain, a round, and everything sent."""
        await self.catch_up()
        await self.service.tick()
        await self.send()

    async def kinds(self) -> list[str]:
        """Kinds of all intents, oldest first."""
        return [intent.request.kind for intent in (await JournalOutbox(self.journal).recent(100))[::-1]]


def known(base: bytes, *, version: int = 0, rate: int = 0) -> KnownPipeline:
    """A pipeline of a base alone at a rate."""
    return KnownPipeline(Pipeline.of(base, base_terms_version=version), (rate,))


def parts_of(world: ChainWorld, rpc: Rpc | None = None, **options: object) -> ChainParts:
    """The chain as a node sees it, perhaps through an RPC of its own."""
    rpc = rpc or world.rpc
    through = ChainWorld(rpc, world.deployment)
    view = ChainView(rpc, world.deployment, MemoryLogs(), poll_s=0.05, **options)  # type: ignore[arg-type]
    return ChainParts(
        rpc=rpc,
        deployment=world.deployment,
        nodes=through.nodes,
        artifacts=through.artifacts,
        settlement=through.settlement,
        credits=through.credits,
        anchor=through.anchor,
        view=view,
    )


@asynccontextmanager
async def open_desk(
    world: ChainWorld,
    folder: Path,
    key: Wallet,
    node: bytes,
    *,
    rpc: Rpc | None = None,
    confirmations: int = 1,
    on_step: Callable[[str], None] | None = None,
    multiple: int = 20,
    periods: FixedPeriods | None = None,
) -> AsyncIterator[Desk]:
    """A desk for a registered node; with `periods` it decides datasets' pools too."""
    epochs = FixedEpochs()
    leaves = MemoryLeaves()
    start = (await world.rpc.head()).timestamp
    desk: Desk | None = None

    def clock() -> int:
        return desk.now if desk is not None else start

    extra = {} if on_step is None else {"on_step": on_step}
    journal = Journal.open(folder / "node.sqlite", Binding.to_node(world.domain, node), clock, **extra)
    async with journal:
        parts = parts_of(world, rpc)
        outbox = Outbox(
            parts.rpc,
            JournalOutbox(journal),
            key,
            world.deployment.chain_id,
            error_table().explain,
            Rules(confirmations=confirmations),
            clock=clock,
        )
        options = SettlementOptions(redeem_gas_multiple=multiple)
        sending = Sending(outbox.address, outbox.chain_id, node)
        decisions = None if periods is None else Decisions(journal, parts, sending, Worth(multiple), periods, leaves)
        service = SettlementService(journal, parts, outbox, node, options, clock, epochs, decisions)
        desk = Desk(world, journal, parts, outbox, service, node, key, epochs, start, leaves)
        yield desk
