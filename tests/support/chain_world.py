"""A chain with our contracts on it, and short ways to put nodes, artifacts and escrow there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coincurve import PrivateKey
from eth_utils.crypto import keccak

from openlora_chain.bindings import ArtifactRegistry, Calldata, Credits, NodeRegistry, ReceiptAnchor, Settlement
from openlora_chain.deployment import Deployment
from openlora_chain.devnet.accounts import dev_wallet
from openlora_chain.devnet.devnet import devnet
from openlora_chain.rpc import Rpc, TxReceipt
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import Wallet
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.structs import NodeKeyProof

OWNER, OPERATOR, PAYER, DEPLOYER = (dev_wallet(name) for name in ("owner", "operator", "payer", "deployer"))
SALT = bytes(31) + b"\x01"
BASE, ADAPTER, DATASET = 1, 2, 3
ETHER = 10**18


def fresh_wallet(label: str) -> Wallet:
    """A key of this label, of no use elsewhere."""
    return Wallet(bytes(keccak(text=f"openlora tests: {label}")))


def artifact_id(label: str) -> bytes:
    """32 bytes that stand for a manifest's digest."""
    return bytes(keccak(text=f"artifact {label}"))


@dataclass
class ChainWorld:
    """Transactions one at a time; every method returns when its block is there."""

    rpc: Rpc
    deployment: Deployment

    def __post_init__(self) -> None:
        self.nodes = NodeRegistry(self.rpc, self.deployment)
        self.artifacts = ArtifactRegistry(self.rpc, self.deployment)
        self.settlement = Settlement(self.rpc, self.deployment)
        self.credits = Credits(self.rpc, self.deployment)
        self.anchor = ReceiptAnchor(self.rpc, self.deployment)
        self.domain = Domain(chain_id=self.deployment.chain_id, verifying_contract=Address(self.deployment.settlement))

    async def send(self, sender: Wallet, call: Calldata, gas: int = 3_000_000) -> TxReceipt:
        """A transaction that must succeed."""
        nonce = await self.rpc.nonce(sender.address)
        tx = UnsignedTransaction(
            self.deployment.chain_id, nonce, call.to, call.value, call.data, gas, 10 * 10**9, 10**9
        )
        signed = await sender.sign_transaction(tx)
        await self.rpc.send_raw(signed.raw)
        receipt = await self.rpc.mined(signed.hash, timeout_s=20)
        assert receipt.succeeded
        return receipt

    async def fund(self, account: bytes, wei: int = ETHER) -> None:
        """Coins for a fresh key."""
        await self.send(DEPLOYER, Calldata(account, b"", wei), 30_000)

    async def key_proof(self, key: Wallet, node: bytes, owner: Wallet) -> tuple[bytes, bytes, int, bytes]:
        """(x, y, deadline, signature) with which a key agrees to serve a node."""
        deadline = (await self.rpc.head()).timestamp + 3_600
        proof = NodeKeyProof(node=node, owner=owner.address, deadline=deadline).sign(self.domain, key)
        point = PrivateKey(key.reveal()).public_key.format(compressed=False)[1:]
        return point[:32], point[32:], deadline, proof.signature

    async def register_node(
        self, key: Wallet, owner: Wallet = OWNER, *, recipient: bytes | None = None, endpoint: str = ""
    ) -> bytes:
        """A node with the least stake; its id."""
        node = await self.nodes.next_node_id(owner.address)
        x, y, deadline, proof = await self.key_proof(key, node, owner)
        stake = await self.nodes.min_stake()
        to = owner.address if recipient is None else recipient
        await self.send(owner, self.nodes.register(x, y, to, endpoint, deadline, proof, stake))
        return node

    async def rotate_key(self, node: bytes, key: Wallet, owner: Wallet = OWNER) -> None:
        """Another key for the node."""
        x, y, deadline, proof = await self.key_proof(key, node, owner)
        await self.send(owner, self.nodes.rotate_key(node, x, y, deadline, proof))

    async def register_artifact(
        self,
        owner: Wallet,
        artifact: bytes,
        kind: int,
        rate: int = 0,
        *,
        shares_root: bytes = bytes(32),
        credits_bps: int = 0,
        components: list[tuple[bytes, int]] | None = None,
    ) -> None:
        """Commit, wait as long as it takes, register."""
        commitment = await self.artifacts.commitment_of(owner.address, artifact, SALT)
        await self.send(owner, self.artifacts.commit(commitment))
        await self.pass_time(await self.artifacts.min_commit_age() + 1)
        terms = (rate, credits_bps, components or [])
        await self.send(owner, self.artifacts.register(artifact, kind, shares_root, "", terms, SALT))

    async def pass_time(self, seconds: int) -> None:
        """The chain's clock goes on at once. Blocks in a hurry stamp themselves ahead of it: hence the look back."""
        target = (await self.rpc.head()).timestamp + seconds
        while (missing := target - (await self.rpc.head()).timestamp) > 0:
            await self.rpc.request("evm_increaseTime", hex(missing))
            await self.mine()

    async def mine(self, blocks: int = 1) -> None:
        """Empty blocks."""
        for _ in range(blocks):
            await self.rpc.request("evm_mine")


@contextmanager
def running_devnet(folder: Path) -> Iterator[tuple[str, Path]]:
    """An embedded devnet in a thread of its own: (URL, deployment file). Blocks come with transactions or on demand."""
    started: list[tuple[str, Path]] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with devnet(folder, port=0, engine="embedded", block_time_s=3_600) as running:
            started.append((running.url, running.deployment_file))
            ready.set()
            await asyncio.to_thread(stop.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="devnet")
    thread.start()
    try:
        assert ready.wait(60)
        yield started[0]
    finally:
        stop.set()
        thread.join(30)
