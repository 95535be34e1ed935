"""The settlement: escrows, channels, pipelines, pools and claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .contract import Calldata, Contract

PipelineTuple: TypeAlias = tuple[bytes, int, Sequence[tuple[bytes, int, int]], int]
"""(base, baseTermsVersion, [(adapter id, termsVersion, weight)], method)"""
VoucherTuple: TypeAlias = tuple[bytes, bytes, bytes, int, int, bytes]
"""(payer, node, pipelineId, cumulativeTokens, cumulativeCompute, referenceDigest)"""


@dataclass(frozen=True, slots=True)
class Escrow:
    """A payer's account with one node, in wei; `thaw_end` is unix seconds, 0 while nothing thaws."""

    balance: int
    thawing: int
    thaw_end: int


@dataclass(frozen=True, slots=True)
class Channel:
    """What was redeemed of (payer, signer, node, pipeline); the debts are what the escrow could not pay then."""

    compute: int
    tokens: int
    indebted: bool
    compute_debt: int
    royalty_debt: int


@dataclass(frozen=True, slots=True)
class Part:
    """One artifact of a registered pipeline."""

    artifact: bytes
    terms_version: int
    numerator: int


@dataclass(frozen=True, slots=True)
class SharePool:
    """A dataset's income under its share table and what was claimed of it, in wei, cumulative."""

    total: int
    claimed: int


@dataclass(frozen=True, slots=True)
class CreditPool:
    """A dataset's income from one node that waits for credits, in wei; `waiting_since` is unix seconds."""

    accrued: int
    settled: int
    credited: int
    waiting_since: int


class Settlement(Contract):
    """Escrow, vouchers, royalties and payouts; the verifying contract of every signature."""

    name = "Settlement"

    async def account_of(self, payer: bytes, node: bytes, at: int | None = None) -> Escrow:
        """A payer's escrow with a node, at the head or at a height."""
        return Escrow(*(await self._read("accountOf", payer, node, at=at))[0])

    async def channel_of(
        self, payer: bytes, signer: bytes, node: bytes, pipeline: bytes, at: int | None = None
    ) -> Channel:
        """What was redeemed so far, at the head or at a height."""
        (compute, tokens, indebted), debt = await self._read("channelOf", payer, signer, node, pipeline, at=at)
        return Channel(compute, tokens, indebted, *debt)

    async def escrow_thaw(self) -> int:
        """Seconds that escrow thaws."""
        return int((await self._read("ESCROW_THAW"))[0])

    async def signer_thaw(self) -> int:
        """Seconds for which a revoked signer's vouchers still redeem."""
        return int((await self._read("SIGNER_THAW"))[0])

    async def recipient_of(self, account: bytes) -> bytes:
        """Where an account's claims and withdrawals go."""
        return bytes((await self._read("recipientOf", account))[0])

    async def parts_of(self, pipeline: bytes) -> tuple[Part, ...]:
        """The artifacts of a registered pipeline, base first; empty while it is unregistered."""
        _header, parts = await self._read("pipelineOf", pipeline)
        return tuple(Part(*part) for part in parts)

    async def accumulator_of(self, node: bytes, pipeline: bytes) -> tuple[int, int]:
        """Royalties of a (node, pipeline) in wei, cumulative: redeemed, and shared out."""
        accrued, harvested = await self._read("accumulatorOf", node, pipeline)
        return int(accrued), int(harvested)

    async def protocol_balance(self, node: bytes) -> int:
        """Wei that `claimProtocol` pays of one node."""
        _operator, protocol = await self._read("ledgerOf", node)
        return int(protocol)

    async def treasury(self) -> bytes:
        """Who receives the protocol's part."""
        return bytes((await self._read("treasury"))[0])

    async def share_pool_of(self, dataset: bytes, root: bytes) -> SharePool:
        """A dataset's income under a share table's root."""
        return SharePool(*await self._read("sharePoolOf", dataset, root))

    async def paid_for_leaf(self, dataset: bytes, leaf: bytes) -> int:
        """Wei that one leaf of a share table was paid."""
        return int((await self._read("paidForLeaf", dataset, leaf))[0])

    async def credit_pool(self, node: bytes, dataset: bytes, at: int | None = None) -> CreditPool:
        """A dataset's credit pool at one node, now or after block `at`."""
        return CreditPool(*(await self._read("creditPool", node, dataset, at=at))[0])

    async def may_sign(self, payer: bytes, signer: bytes) -> bool:
        """Whether a signer's vouchers bind the payer."""
        return bool((await self._read("maySign", payer, signer))[0])

    async def signer_of(self, signer: bytes) -> tuple[bytes, int]:
        """Whom a key signs for, and the unix second at which that ends; 0 for no end."""
        ((payer, ends_at),) = await self._read("authorizationOf", signer)
        return payer, int(ends_at)

    async def voucher_digest(self, voucher: VoucherTuple) -> bytes:
        """The EIP-712 digest as the contract computes it."""
        return bytes((await self._read("voucherDigest", voucher))[0])

    async def pipeline_id_of(self, pipeline: PipelineTuple) -> bytes:
        """The pipeline's id as the contract computes it."""
        return bytes((await self._read("pipelineIdOf", pipeline))[0])

    async def royalties_after(self, pipeline: bytes, tokens: int) -> int:
        """Cumulative royalties in wei; the pipeline must be registered."""
        return int((await self._read("royaltiesAfter", pipeline, tokens))[0])

    async def operator_balance(self, node: bytes) -> int:
        """Wei that `claimOperator` pays."""
        operator, _protocol = await self._read("ledgerOf", node)
        return int(operator)

    async def claimable(self, owner: bytes) -> int:
        """Wei that `claimOwner` pays."""
        return int((await self._read("claimable", owner))[0])

    async def protocol_bps(self) -> int:
        """Basis points of compute that go to the treasury."""
        return int((await self._read("protocolBps"))[0])

    def deposit(self, node: bytes, wei: int) -> Calldata:
        """Put money into the sender's escrow with a node."""
        return self._write("deposit", node, value=wei)

    def deposit_for(self, payer: bytes, node: bytes, wei: int) -> Calldata:
        """Put money into another's escrow."""
        return self._write("depositFor", payer, node, value=wei)

    def move(self, from_node: bytes, to_node: bytes, wei: int) -> Calldata:
        """Carry thawed money to another node."""
        return self._write("move", from_node, to_node, wei)

    def thaw(self, node: bytes, wei: int) -> Calldata:
        """Begin to take money out."""
        return self._write("thaw", node, wei)

    def cancel_thaw(self, node: bytes) -> Calldata:
        """Leave the money in."""
        return self._write("cancelThaw", node)

    def withdraw(self, node: bytes) -> Calldata:
        """Take out what has thawed."""
        return self._write("withdraw", node)

    def authorize_signer(self, signer: bytes, deadline: int, proof: bytes) -> Calldata:
        """Let another key sign for the sender."""
        return self._write("authorizeSigner", signer, deadline, proof)

    def thaw_signer(self, signer: bytes) -> Calldata:
        """Revoke a signer, after the thaw."""
        return self._write("thawSigner", signer)

    def register_pipeline(self, pipeline: PipelineTuple) -> Calldata:
        """Make a pipeline known."""
        return self._write("registerPipeline", pipeline)

    def redeem(self, voucher: VoucherTuple, signature: bytes) -> Calldata:
        """Redeem one voucher."""
        return self._write("redeem", voucher, signature)

    def redeem_many(
        self, pipelines: Sequence[PipelineTuple], vouchers: Sequence[VoucherTuple], signatures: Sequence[bytes]
    ) -> Calldata:
        """Register pipelines and redeem vouchers; a bad one is skipped."""
        return self._write("redeemMany", list(pipelines), list(vouchers), list(signatures))

    def collect(self, payer: bytes, signer: bytes, node: bytes, pipeline: bytes) -> Calldata:
        """Collect a debt that the escrow could not pay before."""
        return self._write("collect", payer, signer, node, pipeline)

    def harvest_many(self, sources: Sequence[tuple[bytes, bytes]]) -> Calldata:
        """Share out the royalties of (node, pipeline) pairs."""
        return self._write("harvestMany", list(sources))

    def claim_operator(self, node: bytes) -> Calldata:
        """Pay the operator."""
        return self._write("claimOperator", node)

    def claim_owner(self, owner: bytes) -> Calldata:
        """Pay an artifact owner."""
        return self._write("claimOwner", owner)

    def claim_share(self, dataset: bytes, contributor: bytes, bps: int, proof: Sequence[bytes]) -> Calldata:
        """Pay a contributor of a dataset."""
        return self._write("claimShare", dataset, contributor, bps, list(proof))

    def claim_protocol(self, nodes: Sequence[bytes]) -> Calldata:
        """Pay the treasury."""
        return self._write("claimProtocol", list(nodes))

    def set_recipient(self, recipient: bytes) -> Calldata:
        """Where the sender's claims go."""
        return self._write("setRecipient", recipient)
