"""The contracts as typed classes: reads ask the chain, writes give a `Calldata` for the outbox or a cold wallet.

One class a contract, methods named as in Solidity. Amounts are wei, ids 32 bytes, addresses 20 bytes. A read that the
contract refuses raises ChainError REVERTED with the custom error's name in the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from .compiled import compiled, error_table
from .deployment import Deployment
from .errors import ChainError, ChainErrorCode, Reverted
from .rpc import Call, Rpc

PipelineTuple: TypeAlias = tuple[bytes, int, Sequence[tuple[bytes, int, int]], int]
"""(base, baseTermsVersion, [(adapter id, termsVersion, weight)], method)"""
VoucherTuple: TypeAlias = tuple[bytes, bytes, bytes, int, int, bytes]
"""(payer, node, pipelineId, cumulativeTokens, cumulativeCompute, referenceDigest)"""
TermsTuple: TypeAlias = tuple[int, int, Sequence[tuple[bytes, int]]]
"""(rate, creditsBps, [(component id, bps)])"""


@dataclass(frozen=True, slots=True)
class Calldata:
    """A call that somebody may sign: what `--calldata` prints and what an intent carries."""

    to: bytes
    data: bytes
    value: int = 0


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
class Node:
    """A registered node. `key` is the node key's address."""

    owner: bytes
    deregistered: bool
    recipient: bytes
    key: bytes
    staked: int
    thawing: int
    thaw_end: int


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The life of a node key, times in unix seconds; `valid_until` is 0 while it is current, `node` zero for no key."""

    node: bytes
    x: bytes
    valid_from: int
    valid_until: int
    odd_y: bool


@dataclass(frozen=True, slots=True)
class Artifact:
    """A registered artifact; kind 0 (None), 1 (Base), 2 (Adapter), 3 (Dataset)."""

    owner: bytes
    kind: int
    latest_version: int
    pending_owner: bytes
    shares_root: bytes


@dataclass(frozen=True, slots=True)
class TermsVersion:
    """One version of an artifact's terms: wei per 1,000,000 tokens, unix seconds, basis points."""

    rate: int
    created_at: int
    credits_bps: int
    components: tuple[tuple[bytes, int], ...]


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


class _Contract:
    """One contract at one address."""

    name: ClassVar[str]

    def __init__(self, rpc: Rpc, deployment: Deployment) -> None:
        self.address = deployment.contracts[self.name].address
        self._rpc = rpc
        self._web3 = rpc.web3.eth.contract(address=to_checksum_address(self.address), abi=compiled(self.name).abi)
        self._outputs = {
            entry["name"]: [_type(item) for item in entry["outputs"]]
            for entry in compiled(self.name).abi
            if entry["type"] == "function"
        }

    def __repr__(self) -> str:
        return f"{self.name}(0x{self.address.hex()})"

    def _write(self, function: str, *arguments: Any, value: int = 0) -> Calldata:
        encoded = self._web3.encode_abi(function, args=[_argument(argument) for argument in arguments])
        return Calldata(self.address, bytes.fromhex(encoded.removeprefix("0x")), value)

    async def _read(self, function: str, *arguments: Any, at: int | None = None) -> tuple[Any, ...]:
        call = Call(bytes(20), self.address, self._write(function, *arguments).data)
        try:
            output = await self._rpc.call(call, at)
        except Reverted as error:
            raise ChainError(
                ChainErrorCode.REVERTED, f"{self.name}.{function} refused: {error_table().explain(error.data)}"
            ) from None
        try:
            return tuple(_plain(value) for value in decode(self._outputs[function], output))
        except DecodingError:
            raise ChainError(
                ChainErrorCode.CONTRACT_MISMATCH, f"{self.name}.{function} gave no {self._outputs[function]}"
            ) from None


class NodeRegistry(_Contract):
    """Nodes, their keys and stakes."""

    name = "NodeRegistry"

    async def next_node_id(self, owner: bytes) -> bytes:
        """The id that the owner's next registration gets."""
        return bytes((await self._read("nextNodeId", owner))[0])

    async def node_of(self, node: bytes) -> Node:
        """A node, all zero when there is none."""
        ((owner, deregistered, recipient, key, (staked, thawing, thaw_end)),) = await self._read("nodeOf", node)
        return Node(owner, deregistered, recipient, key, staked, thawing, thaw_end)

    async def find_node(self, node: bytes) -> Node | None:
        """A node, None when there is none."""
        try:
            return await self.node_of(node)
        except ChainError as error:
            if error.code is ChainErrorCode.REVERTED and "UnknownNode" in error.message:
                return None
            raise

    async def endpoint_of(self, node: bytes) -> str:
        """Where a registered node says it is reached."""
        return str((await self._read("endpointOf", node))[0])

    async def key_of(self, key: bytes) -> NodeKey:
        """The life of a key, by its address."""
        ((node, x, valid_from, valid_until, odd_y),) = await self._read("keyOf", key)
        return NodeKey(node, x, valid_from, valid_until, odd_y)

    async def peer_id_of(self, key: bytes) -> bytes:
        """The libp2p peer id of a registered key, as its multihash."""
        return bytes((await self._read("peerIdOf", key))[0])

    async def thaw_period(self) -> int:
        """Seconds that stake thaws."""
        return int((await self._read("THAW_PERIOD"))[0])

    async def is_active(self, node: bytes) -> bool:
        """Registered, and its key is valid."""
        return bool((await self._read("isActive", node))[0])

    async def min_stake(self) -> int:
        """Wei that a registration carries at least."""
        return int((await self._read("MIN_STAKE"))[0])

    def register(
        self, x: bytes, y: bytes, recipient: bytes, endpoint: str, deadline: int, proof: bytes, stake: int
    ) -> Calldata:
        """Register a node key (its public point) with a signature of that key."""
        return self._write("register", x, y, recipient, endpoint, deadline, proof, value=stake)

    def rotate_key(self, node: bytes, x: bytes, y: bytes, deadline: int, proof: bytes) -> Calldata:
        """Replace the node key."""
        return self._write("rotateKey", node, x, y, deadline, proof)

    def set_recipient(self, node: bytes, recipient: bytes) -> Calldata:
        """Where the node's earnings go."""
        return self._write("setRecipient", node, recipient)

    def set_endpoint(self, node: bytes, endpoint: str) -> Calldata:
        """Where the node is found."""
        return self._write("setEndpoint", node, endpoint)

    def add_stake(self, node: bytes, wei: int) -> Calldata:
        """Stake more."""
        return self._write("addStake", node, value=wei)

    def thaw_stake(self, node: bytes, wei: int) -> Calldata:
        """Begin to take stake out."""
        return self._write("thawStake", node, wei)

    def withdraw_stake(self, node: bytes) -> Calldata:
        """Take out what has thawed."""
        return self._write("withdrawStake", node)

    def deregister(self, node: bytes) -> Calldata:
        """Close the node; its vouchers stay redeemable."""
        return self._write("deregister", node)


class ArtifactRegistry(_Contract):
    """Artifacts, their owners, terms and access policies."""

    name = "ArtifactRegistry"

    async def owner_of(self, artifact: bytes) -> bytes:
        """The owner, 20 zero bytes while unregistered."""
        return bytes((await self._read("ownerOf", artifact))[0])

    async def artifact_of(self, artifact: bytes) -> Artifact:
        """Everything known of an artifact, all zero while unregistered."""
        return Artifact(*(await self._read("artifactOf", artifact))[0])

    async def terms_of(self, artifact: bytes, version: int) -> TermsVersion:
        """One version of its terms, from 1. Raises ChainError REVERTED where there is none."""
        (rate, created_at, credits_bps, _count), components = await self._read("termsOf", artifact, version)
        return TermsVersion(rate, created_at, credits_bps, tuple((part, bps) for part, bps in components))

    async def terms_grace(self) -> int:
        """Seconds that superseded terms still redeem."""
        return int((await self._read("TERMS_GRACE"))[0])

    async def rate_of(self, artifact: bytes, version: int) -> int | None:
        """Wei per 1,000,000 tokens under these terms, None if they do not exist."""
        _, rate, exists = await self._read("rateOf", artifact, version)
        return int(rate) if exists else None

    async def accepted_until(self, artifact: bytes, version: int) -> int:
        """Until when these terms redeem, unix seconds."""
        return int((await self._read("acceptedUntil", artifact, version))[0])

    async def has_access(self, artifact: bytes, scope: int, subject: bytes) -> bool:
        """Whether a payer (scope use) or node (scope host), as 32 bytes, may."""
        return bool((await self._read("hasAccess", artifact, scope, subject))[0])

    async def commitment_of(self, owner: bytes, artifact: bytes, salt: bytes) -> bytes:
        """What `commit` takes."""
        return bytes((await self._read("commitmentOf", owner, artifact, salt))[0])

    async def min_commit_age(self) -> int:
        """Seconds between commit and register."""
        return int((await self._read("MIN_COMMIT_AGE"))[0])

    async def max_commit_age(self) -> int:
        """Seconds after which a commitment is void."""
        return int((await self._read("MAX_COMMIT_AGE"))[0])

    async def committed_at(self, account: bytes, commitment: bytes) -> int:
        """When a commitment was made, unix seconds; 0 without one, and once it was used."""
        return int((await self._read("committedAt", account, commitment))[0])

    async def claimable(self, account: bytes) -> int:
        """Wei of licences sold, and change of licences bought, that `claim` pays."""
        return int((await self._read("claimable", account))[0])

    def claim(self, account: bytes) -> Calldata:
        """Pay an account what its licences brought."""
        return self._write("claim", account)

    def commit(self, commitment: bytes) -> Calldata:
        """First step of a registration: nobody sees what."""
        return self._write("commit", commitment)

    def register(
        self, artifact: bytes, kind: int, shares_root: bytes, metadata: str, terms: TermsTuple, salt: bytes
    ) -> Calldata:
        """Second step."""
        return self._write("register", artifact, kind, shares_root, metadata, terms, salt)

    def set_terms(self, artifact: bytes, terms: TermsTuple) -> Calldata:
        """A new version of the terms."""
        return self._write("setTerms", artifact, terms)

    def set_policy(self, artifact: bytes, scope: int, mode: int, price: int, duration: int) -> Calldata:
        """Who may use or host."""
        return self._write("setPolicy", artifact, scope, mode, price, duration)

    def set_listed(self, artifact: bytes, scope: int, subjects: Sequence[bytes], *, listed: bool) -> Calldata:
        """Put on or take off the allow-list."""
        return self._write("setListed", artifact, scope, list(subjects), listed)

    def buy(
        self, artifact: bytes, scope: int, subject: bytes, max_price: int, min_duration: int, price: int
    ) -> Calldata:
        """Buy a licence."""
        return self._write("buy", artifact, scope, subject, max_price, min_duration, value=price)

    def transfer_ownership(self, artifact: bytes, new_owner: bytes) -> Calldata:
        """Offer the artifact to another owner, who accepts."""
        return self._write("transferOwnership", artifact, new_owner)

    def accept_ownership(self, artifact: bytes) -> Calldata:
        """Take over an artifact."""
        return self._write("acceptOwnership", artifact)


class Settlement(_Contract):
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

    async def credit_pool(self, node: bytes, dataset: bytes) -> CreditPool:
        """A dataset's credit pool at one node."""
        return CreditPool(*(await self._read("creditPool", node, dataset))[0])

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


class Credits(_Contract):
    """Dataset pools credited by use."""

    name = "Credits"

    async def active_root(self, node: bytes, dataset: bytes) -> bytes:
        """The root of the credits in force, 32 zero bytes before the first."""
        ((root, _total, _reach, _epoch),) = await self._read("activeOf", node, dataset)
        return bytes(root)

    async def paid_to(self, node: bytes, dataset: bytes, contributor: bytes) -> int:
        """Wei of credits that a contributor was paid."""
        return int((await self._read("paidTo", node, dataset, contributor))[0])

    def post(
        self, node: bytes, dataset: bytes, epoch: int, root: bytes, leaves: bytes, total: int, through: int
    ) -> Calldata:
        """Post a cumulative credits root."""
        return self._write("post", node, dataset, epoch, root, leaves, total, through)

    def veto(self, node: bytes, dataset: bytes) -> Calldata:
        """Refuse a posted root."""
        return self._write("veto", node, dataset)

    def activate(self, node: bytes, dataset: bytes) -> Calldata:
        """Make a root claimable after its timelock."""
        return self._write("activate", node, dataset)

    def lapse(self, node: bytes, dataset: bytes) -> Calldata:
        """Give a pool that nobody credited to the static shares."""
        return self._write("lapse", node, dataset)

    def claim(
        self,
        node: bytes,
        dataset: bytes,
        contributor: bytes,
        cumulative: int,
        credit_proof: Sequence[bytes],
        bps: int,
        share_proof: Sequence[bytes],
    ) -> Calldata:
        """Pay a contributor's credits."""
        return self._write("claim", node, dataset, contributor, cumulative, list(credit_proof), bps, list(share_proof))


class ReceiptAnchor(_Contract):
    """Roots of receipts, and judgement over two receipts with one number."""

    name = "ReceiptAnchor"

    async def root_of(self, node: bytes, epoch: int) -> bytes:
        """The anchored root, 32 zero bytes if none."""
        return bytes((await self._read("rootOf", node, epoch))[0])

    def anchor(self, node: bytes, epoch: int, root: bytes, totals: tuple[int, int, int, int, int, int]) -> Calldata:
        """Anchor an epoch: totals are (count, firstSeq, lastSeq, tokens, compute, royalties)."""
        return self._write("anchor", node, epoch, root, totals)

    def challenge_equivocation(
        self, a: tuple[Any, ...], signature_a: bytes, b: tuple[Any, ...], signature_b: bytes
    ) -> Calldata:
        """Prove that a node signed two receipts under one number."""
        return self._write("challengeEquivocation", a, signature_a, b, signature_b)


def _type(item: dict[str, Any]) -> str:
    name: str = item["type"]
    if not name.startswith("tuple"):
        return name
    return f"({','.join(_type(part) for part in item['components'])}){name.removeprefix('tuple')}"


def _argument(value: Any) -> Any:
    """Addresses are bytes with us and checksummed text with web3."""
    if isinstance(value, bytes) and len(value) == 20:
        return to_checksum_address(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_argument(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    """And back: eth-abi gives addresses as text."""
    if isinstance(value, str) and len(value) == 42 and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
