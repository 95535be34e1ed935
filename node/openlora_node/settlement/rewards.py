"""What each role can claim now and once royalties are shared out, and the calls that claim it. Sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openlora_chain.bindings import ArtifactRegistry, Calldata, Credits, NodeRegistry, Settlement

from ..artifacts.shares import ShareTable
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes
from ..protocol.merkle import amount_leaf
from .credits import CreditTable
from .royalties import BPS, Division, Royalties
from .sources import Source

SOURCES_A_HARVEST = 8


@dataclass(frozen=True)
class Reward:
    """One thing that can be claimed. Wei; `pending` comes on top once its sources are harvested."""

    role: str
    what: str
    recipient: bytes
    claimable: int
    pending: int = 0


@dataclass(frozen=True)
class ClaimStep:
    """One call. `follows` says that it pays in full only once those before it are mined."""

    label: str
    call: Calldata
    follows: bool = False


@dataclass(frozen=True)
class Rewards:
    """What was found, and how to claim it."""

    rewards: tuple[Reward, ...]
    steps: tuple[ClaimStep, ...]


class RewardDesk:
    """Looks for anybody, with no node and no key. Methods raise ChainError as reads do."""

    def __init__(
        self, nodes: NodeRegistry, artifacts: ArtifactRegistry, settlement: Settlement, by_use: Credits
    ) -> None:
        self._nodes = nodes
        self._artifacts = artifacts
        self._settlement = settlement
        self._credits = by_use
        self._royalties = Royalties(artifacts, settlement)

    async def operator(self, nodes: Sequence[bytes]) -> Rewards:
        """Nodes' earnings, which go to the recipients that their owners set."""
        rewards, steps = [], []
        for node in nodes:
            entry = await self._nodes.find_node(node)
            if entry is None:
                raise OpenLoraError(ErrorCode.NOT_FOUND, f"no node has the id {format_bytes(node)}")
            balance = await self._settlement.operator_balance(node)
            rewards.append(Reward("operator", f"node {format_bytes(node)}", entry.recipient, balance))
            if balance:
                steps.append(ClaimStep("claim the node's earnings", self._settlement.claim_operator(node)))
        return Rewards(tuple(rewards), tuple(steps))

    async def protocol(self, nodes: Sequence[bytes]) -> Rewards:
        """The protocol's part of nodes' compute, which goes to the treasury."""
        treasury = await self._settlement.treasury()
        balances = [(node, await self._settlement.protocol_balance(node)) for node in nodes]
        rewards = [Reward("protocol", f"node {format_bytes(node)}", treasury, balance) for node, balance in balances]
        owing = [node for node, balance in balances if balance]
        steps = [ClaimStep("claim the protocol's part", self._settlement.claim_protocol(owing))] if owing else []
        return Rewards(tuple(rewards), tuple(steps))

    async def owner(self, account: bytes, sources: Sequence[Source]) -> Rewards:
        """An artifact owner's royalties and licence income."""
        recipient = await self._settlement.recipient_of(account)
        claimable = await self._settlement.claimable(account)
        useful, pending = await self._harvests(sources, lambda division: division.owners[account])
        licences = await self._artifacts.claimable(account)
        who = format_address(account)
        rewards = [Reward("owner", f"royalties of {who}", recipient, claimable, pending)]
        steps = self._harvest_steps(useful)
        if claimable or pending:
            call = self._settlement.claim_owner(account)
            steps.append(ClaimStep("claim the royalties", call, follows=bool(pending)))
        if licences:
            rewards.append(Reward("owner", f"licences of {who}", account, licences))
            steps.append(ClaimStep("claim the licence income", self._artifacts.claim(account)))
        return Rewards(tuple(rewards), tuple(steps))

    async def contributor(
        self, account: bytes, dataset: bytes, table: ShareTable, sources: Sequence[Source]
    ) -> Rewards:
        """A contributor's static share of a dataset's income. Raises OpenLoraError NOT_FOUND for another's table."""
        await self._check_table(dataset, table)
        bps, proof = table.bps(account), table.proof(account)
        pool = await self._settlement.share_pool_of(dataset, table.root)
        paid = await self._settlement.paid_for_leaf(dataset, amount_leaf(account, bps))
        useful, more = await self._harvests(sources, lambda division: division.shares[dataset])
        claimable = min(pool.total * bps // BPS - paid, pool.total - pool.claimed)
        total = pool.total + more
        pending = min(total * bps // BPS - paid, total - pool.claimed) - claimable
        recipient = await self._settlement.recipient_of(account)
        reward = Reward("contributor", f"share of {format_artifact_id(dataset)}", recipient, claimable, pending)
        steps = self._harvest_steps(useful) if pending else []
        if claimable or pending:
            call = self._settlement.claim_share(dataset, account, bps, proof)
            steps.append(ClaimStep("claim the share", call, follows=bool(pending)))
        return Rewards((reward,), tuple(steps))

    async def credited(
        self, account: bytes, node: bytes, dataset: bytes, table: ShareTable, credited: CreditTable
    ) -> Rewards:
        """A contributor's credits with one node. Raises OpenLoraError NOT_FOUND for tables not in force."""
        await self._check_table(dataset, table)
        if await self._credits.active_root(node, dataset) != credited.root:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "this credits table is not the one in force: fetch the newest")
        cumulative = credited.wei(account)
        paid = await self._credits.paid_to(node, dataset, account)
        left = (await self._settlement.credit_pool(node, dataset)).credited
        claimable = max(0, min(cumulative - paid, left))
        recipient = await self._settlement.recipient_of(account)
        reward = Reward("contributor", f"credits of {format_artifact_id(dataset)}", recipient, claimable)
        if not claimable:
            return Rewards((reward,), ())
        call = self._credits.claim(
            node, dataset, account, cumulative, credited.proof(account), table.bps(account), table.proof(account)
        )
        return Rewards((reward,), (ClaimStep("claim the credits", call),))

    async def _check_table(self, dataset: bytes, table: ShareTable) -> None:
        found = await self._artifacts.artifact_of(dataset)
        if found.shares_root != table.root:
            raise OpenLoraError(
                ErrorCode.NOT_FOUND, "this share table is not the dataset's: use the shares.json that came with it"
            )

    async def _harvests(self, sources: Sequence[Source], part: Callable[[Division], int]) -> tuple[list[Source], int]:
        """Sources whose harvest brings this beneficiary something, and how much in all."""
        useful: list[Source] = []
        total = 0
        for node, pipeline in sources:
            amount = part(await self._royalties.divide(node, pipeline))
            if amount:
                useful.append((node, pipeline))
                total += amount
        return useful, total

    def _harvest_steps(self, sources: Sequence[Source]) -> list[ClaimStep]:
        return [
            ClaimStep("share out royalties", self._settlement.harvest_many(sources[at : at + SOURCES_A_HARVEST]))
            for at in range(0, len(sources), SOURCES_A_HARVEST)
        ]
