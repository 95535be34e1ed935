"""The demo's chain: registers everyone on an embedded devnet, then turns the voucher held into what each one earned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coincurve import PrivateKey
from world import ADAPTER_OWNERS, BASE, BASE_OWNER, NODE_KEY, PAYER_KEY, PIPELINE, ROYALTY_RATES, World, say

from openlora_chain.bindings import ArtifactRegistry, Calldata, NodeRegistry, Settlement
from openlora_chain.devnet.accounts import dev_wallet
from openlora_chain.devnet.devnet import devnet
from openlora_chain.rpc import Rpc
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import Wallet
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.structs import NodeKeyProof, Voucher

OWNER, DEPLOYER = dev_wallet("owner"), dev_wallet("deployer")
TREASURY, PAYOUT = dev_wallet("treasury").address, dev_wallet("operator-2").address
KIND_BASE, KIND_ADAPTER = 1, 2
DEPOSIT = 10**17
SALT = bytes(31) + b"\x01"


class Chain:
    """A devnet with the demo's node, base, adapters and escrow on it."""

    def __init__(self, rpc: Rpc, nodes: NodeRegistry, artifacts: ArtifactRegistry, settlement: Settlement) -> None:
        self._rpc = rpc
        self._nodes = nodes
        self._artifacts = artifacts
        self._settlement = settlement
        self.node = b""

    async def register(self, domain: Domain) -> None:
        """Artifacts with their rates, the node with its stake, the payer's escrow with it."""
        await self._register_artifact(BASE_OWNER, BASE, KIND_BASE)
        for adapter in PIPELINE.adapters:
            await self._register_artifact(ADAPTER_OWNERS[adapter.id], adapter.id, KIND_ADAPTER)
        self.node = await self._nodes.next_node_id(OWNER.address)
        deadline = (await self._rpc.head()).timestamp + 3_600
        proof = NodeKeyProof(node=self.node, owner=OWNER.address, deadline=deadline).sign(domain, NODE_KEY)
        point = PrivateKey(NODE_KEY.reveal()).public_key.format(compressed=False)[1:]
        stake = await self._nodes.min_stake()
        await self._send(
            OWNER, self._nodes.register(point[:32], point[32:], PAYOUT, "", deadline, proof.signature, stake)
        )
        await self._send(PAYER_KEY, self._settlement.deposit(self.node, DEPOSIT))

    async def escrow(self, payer: bytes) -> int:
        """What the payer's escrow with the node holds and does not thaw, in wei."""
        account = await self._settlement.account_of(payer, self.node)
        return account.balance - account.thawing

    async def settle(self, voucher: Signed[Voucher]) -> None:
        """Redeem, share out, claim for everyone; print who got what, which adds up to what left escrow."""
        before = await self.escrow(PAYER_KEY.address)
        value = voucher.value
        fields = tuple(getattr(value, name) for name in value.__struct_fields__)
        adapters = [(adapter.id, adapter.terms_version, adapter.weight) for adapter in PIPELINE.adapters]
        parts = (PIPELINE.base, PIPELINE.base_terms_version, adapters, PIPELINE.method)
        await self._send(NODE_KEY, self._settlement.redeem_many([parts], [fields], [voucher.signature]))
        spent = before - await self.escrow(PAYER_KEY.address)
        say("redeem", f"one voucher for everything: {spent:,} wei left the payer's escrow")
        await self._send(DEPLOYER, self._settlement.harvest_many([(self.node, PIPELINE.id)]))
        claims = [
            ("operator", PAYOUT, self._settlement.claim_operator(self.node)),
            ("treasury", TREASURY, self._settlement.claim_protocol([self.node])),
            ("base owner", BASE_OWNER.address, self._settlement.claim_owner(BASE_OWNER.address)),
            *(
                (
                    f"owner × {adapter.weight / 10_000}",
                    ADAPTER_OWNERS[adapter.id].address,
                    self._settlement.claim_owner(ADAPTER_OWNERS[adapter.id].address),
                )
                for adapter in PIPELINE.adapters
            ),
        ]
        total = 0
        for name, account, call in claims:
            held = await self._rpc.balance(account)
            await self._send(DEPLOYER, call)
            earned = await self._rpc.balance(account) - held
            total += earned
            say("claim", f"{name:<12} {earned:>16,} wei")
        say("", f"{'together':<12} {total:>16,} wei; {spent - total} wei of dust stay undivided")

    async def _register_artifact(self, owner: Wallet, artifact: bytes, kind: int) -> None:
        commitment = await self._artifacts.commitment_of(owner.address, artifact, SALT)
        await self._send(owner, self._artifacts.commit(commitment))
        age = await self._artifacts.min_commit_age()
        since = (await self._rpc.head()).timestamp
        while (await self._rpc.head()).timestamp <= since + age:  # a harmless transaction makes the next block
            await self._send(DEPLOYER, Calldata(DEPLOYER.address, b"", 0), 100_000)
        rate = ROYALTY_RATES[artifact]
        await self._send(owner, self._artifacts.register(artifact, kind, bytes(32), "", (rate, 0, []), SALT))

    async def _send(self, sender: Wallet, call: Calldata, gas: int = 3_000_000) -> None:
        nonce = await self._rpc.nonce(sender.address)
        chain_id = await self._rpc.chain_id()
        tx = UnsignedTransaction(chain_id, nonce, call.to, call.value, call.data, gas, 10 * 10**9, 10**9)
        signed = await sender.sign_transaction(tx)
        await self._rpc.send_raw(signed.raw)
        receipt = await self._rpc.mined(signed.hash)
        assert receipt.succeeded


@asynccontextmanager
async def settled_world(folder: Path) -> AsyncIterator[tuple[World, Chain]]:
    """A devnet in `folder` with everything registered on it, for as long as the block lasts."""
    async with devnet(folder, port=0, engine="embedded") as running, Rpc(running.url) as rpc:
        deployment = running.deployment
        nodes, artifacts = NodeRegistry(rpc, deployment), ArtifactRegistry(rpc, deployment)
        chain = Chain(rpc, nodes, artifacts, Settlement(rpc, deployment))
        domain = Domain(chain_id=deployment.chain_id, verifying_contract=Address(deployment.settlement))
        await chain.register(domain)
        say("chain", f"{running.url}, id {deployment.chain_id}; contracts deployed, everyone registered")
        yield World(domain, chain.node, chain.escrow), chain
