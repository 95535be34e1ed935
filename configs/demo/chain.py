"""The demo's chain desk: registers what is on offer, sends what a wallet wants sent, tells what everybody holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora_chain.bindings import ArtifactRegistry, Calldata, NodeRegistry, ReceiptAnchor, Settlement
from openlora_chain.deployment import Deployment, load_deployment
from openlora_chain.devnet.accounts import dev_wallet
from openlora_chain.rpc import Rpc
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import Wallet

TERMS = tuple[int, int, list[tuple[bytes, int]]]
"""Rate in wei per 1,000,000 tokens, basis points paid by use, [(component, basis points)]."""
SALT = bytes(31) + b"\x01"
GAS_PRICE = 10 * 10**9


@dataclass(frozen=True)
class Offer:
    """An artifact as its owner registers it."""

    name: str
    artifact: bytes
    kind: int
    owner: Wallet
    terms: TERMS
    shares_root: bytes = bytes(32)


class ChainDesk:
    """The contracts of one devnet."""

    def __init__(self, rpc: Rpc, deployment: Deployment) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self.nodes = NodeRegistry(rpc, deployment)
        self.artifacts = ArtifactRegistry(rpc, deployment)
        self.settlement = Settlement(rpc, deployment)
        self.anchor = ReceiptAnchor(rpc, deployment)

    async def register(self, offers: list[Offer]) -> None:
        """Commit to all, wait until commitments are old enough, then show them: components before what names them."""
        for offer in offers:
            commitment = await self.artifacts.commitment_of(offer.owner.address, offer.artifact, SALT)
            await self.send(offer.owner, self.artifacts.commit(commitment))
        since, age = (await self.rpc.head()).timestamp, await self.artifacts.min_commit_age()
        while (await self.rpc.head()).timestamp <= since + age:
            await self.pay(dev_wallet("deployer").address, 0)  # a transaction makes the next block
            await asyncio.sleep(0.1)
        for offer in offers:
            call = self.artifacts.register(offer.artifact, offer.kind, offer.shares_root, "", offer.terms, SALT)
            await self.send(offer.owner, call)

    async def pay(self, address: bytes, wei: int) -> None:
        """Send coin from the deployer."""
        await self.send(dev_wallet("deployer"), Calldata(address, b"", wei), 100_000)

    async def send(self, sender: Wallet, call: Calldata, gas: int = 3_000_000) -> None:
        """Send one transaction and wait until it is mined."""
        nonce, chain_id = await self.rpc.nonce(sender.address), self.deployment.chain_id
        tx = UnsignedTransaction(chain_id, nonce, call.to, call.value, call.data, gas, GAS_PRICE, 10**9)
        signed = await sender.sign_transaction(tx)
        await self.rpc.send_raw(signed.raw)
        receipt = await self.rpc.mined(signed.hash)
        assert receipt.succeeded, "the devnet refused a transaction of the demo"

    async def balances(self, accounts: Mapping[str, bytes]) -> dict[str, int]:
        """Wei of each."""
        return {name: await self.rpc.balance(address) for name, address in accounts.items()}


@asynccontextmanager
async def chain_desk(url: str, deployment_file: Path) -> AsyncIterator[ChainDesk]:
    """A desk at a running devnet."""
    async with Rpc(url) as rpc:
        yield ChainDesk(rpc, load_deployment(deployment_file))
