"""A gateway on the real thing: an embedded chain, nodes that serve over libp2p, a scripted engine behind each.

The node's half is composed as the daemon does it, without engine process, store limits and settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from openlora_chain.rpc import Rpc
from openlora_chain.wallet import Wallet
from openlora_node.artifacts import ArtifactStore
from openlora_node.chainview import open_chain
from openlora_node.config import Config
from openlora_node.daemon.doors import Doors, serve_vouchers
from openlora_node.engineclient.values import Mix
from openlora_node.gateway.app import Gateway, now, open_gateway
from openlora_node.journal import Binding, Journal
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.adverts import OwnState
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.host import HostOptions
from openlora_node.network.inference import serve_session
from openlora_node.network.service import Network
from openlora_node.network.transfer import Sender
from openlora_node.openai import Body
from openlora_node.protocol.messages import ARTIFACT, INFER, VOUCHER
from openlora_node.protocol.structs import NodeState
from openlora_node.serving import Prices, Serving
from support.chain_world import ADAPTER, BASE, ETHER, OWNER, PAYER, ChainWorld, artifact_id, fresh_wallet
from support.gateway_world import WORDS, count, write_base
from support.serving_world import OPTIONS, FakeArtifacts, FakeEngine

PRICES = Prices(200 * 10**9, 600 * 10**9, 10**9)
ROYALTY = 50 * 10**9
POET = artifact_id("gateway poet")
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


class CountingEngine(FakeEngine):
    """The scripted engine with the base's own tokenizer."""

    async def count(self, body: Body, mix: Mix) -> int:
        return count(body)


@dataclass
class RunningNode:
    """A node that serves."""

    node: bytes
    network: Network
    serving: Serving
    engine: CountingEngine
    journal: Journal
    addresses: tuple[str, ...]
    doors: asyncio.Task[None] = field(repr=False)

    async def crash(self) -> None:
        """Gone without a word: streams die, nothing is drained."""
        await self.network.stop()


@dataclass
class Town:
    """The chain with its contracts, a registered base and adapter, and a store that holds the base."""

    url: str
    deployment: Path
    folder: Path
    base: bytes
    store: ArtifactStore

    def chain(self) -> dict[str, Any]:
        """The configuration's section."""
        return {"rpc_urls": (self.url,), "deployment_file": str(self.deployment), "confirmations": 0,
                "poll_interval": "100ms"}  # fmt: skip


@asynccontextmanager
async def town(url: str, deployment_file: Path, folder: Path) -> AsyncIterator[Town]:
    """Base and adapter registered, royalties set. The chain may have been used by other tests."""
    from openlora_chain.deployment import load_deployment

    store = ArtifactStore.open(folder / "artifacts", 1 << 30, keep_free=0)
    base = await store.add_folder(write_base(folder / "model"), "base")
    async with Rpc(url, first_pause_s=0.01) as rpc:
        world = ChainWorld(rpc, load_deployment(deployment_file))
        for artifact, kind in ((base, BASE), (POET, ADAPTER)):
            if not any(await world.artifacts.owner_of(artifact)):
                await world.register_artifact(OWNER, artifact, kind, ROYALTY)
    try:
        yield Town(url, deployment_file, folder, base, store)
    finally:
        store.close()


@asynccontextmanager
async def serving_node(home: Town, name: str, *, prices: Prices = PRICES) -> AsyncIterator[RunningNode]:
    """One registered node with its doors open."""
    from openlora_chain.deployment import load_deployment

    key = fresh_wallet(f"gateway node {name} {home.folder}")
    async with Rpc(home.url, first_pause_s=0.01) as rpc:
        world = ChainWorld(rpc, load_deployment(home.deployment))
        await world.fund(key.address)
        node = await world.register_node(key)
    folder = home.folder / name
    folder.mkdir()
    config = Config(chain=home.chain())
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(open_chain(config.chain, config.deployment_file))
        following = asyncio.create_task(parts.view.run(), name=f"{name}: chain")
        stack.push_async_callback(_end, following)
        await parts.view.wait_synced()
        journal = Journal.open(folder / "node.sqlite", Binding.to_node(parts.view.domain, node), now)
        stack.push_async_callback(journal.close)
        network = Network(
            key.reveal(),
            HostOptions(listen=LOOPBACK),
            parts.view,
            adverts=AdvertOptions(parts.view.domain, interval=5, debounce=0.1, reconcile=0.5, node=node, key=key),
            directory=DirectoryOptions(parts.view.domain, first_retry=0.1),
            serves=(INFER, VOUCHER, ARTIFACT),
        )
        await network.start()
        stack.push_async_callback(network.stop)
        engine = CountingEngine(first_id=WORDS)
        serving = Serving(
            node=node,
            key=key,
            chain=parts.view,
            journal=journal,
            engines={home.base: lambda _: engine},
            artifacts=FakeArtifacts(),
            prices=lambda: prices,
            options=OPTIONS,
        )
        await serving.start()
        sender = Sender(home.store, _anyone)
        handlers = {
            INFER.id: partial(serve_session, handle=serving.handle, max_open=256),
            VOUCHER.id: partial(serve_vouchers, accounts=serving),
            ARTIFACT.id: sender.serve,
        }
        doors = asyncio.create_task(Doors(network, handlers).run(), name=f"{name}: doors")
        stack.push_async_callback(_end, doors)
        await network.follow(home.base)
        addresses = await network.addresses()
        network.advertise(
            OwnState(
                state=NodeState.ONLINE,
                base_models=(home.base,),
                input_rate=prices.input_rate,
                output_rate=prices.output_rate,
                max_context=4_096,
                addresses=tuple(address.rpartition("/p2p/")[0] for address in addresses),
            )
        )
        yield RunningNode(node, network, serving, engine, journal, addresses, doors)


@asynccontextmanager
async def gateway(
    home: Town, name: str, nodes: list[RunningNode], *, wallet: Wallet = PAYER, serve: bool = True, **options: Any
) -> AsyncIterator[Gateway]:
    """A gateway with its own directory, whose bootstrap peers are these nodes."""
    config = gateway_config(home, name, nodes, **options)
    async with open_gateway(config, wallet=wallet, serve=serve) as running:
        yield running


def gateway_config(home: Town, name: str, nodes: list[RunningNode], **options: Any) -> Config:
    """The configuration of a gateway that listens on a free port and knows `tiny` and `poet`."""
    names = home.folder / f"{name}-names.yaml"
    base = f"sha256:{home.base.hex()}"
    names.write_text(
        yaml.safe_dump(
            {"bases": {"tiny": {"id": base}}, "adapters": {"poet": {"id": f"sha256:{POET.hex()}", "base": base}}}
        )
    )
    settings = {
        "listen": "127.0.0.1:0", "names_file": str(names), "spend_per_request": "0.001 OPEN",
        "spend_per_day": "1 OPEN", "escrow_per_node": "0.1 OPEN", **options,
    }  # fmt: skip
    return Config(
        node={"data_dir": str(home.folder / name)},
        chain=home.chain(),
        network={"bootstrap": tuple(address for node in nodes for address in node.addresses), "advert_interval": "5s"},
        gateway=settings,
    )


async def _anyone(_artifact: bytes, _peer: object) -> bool:
    return True


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


__all__ = ["ETHER", "POET", "PRICES", "RunningNode", "Town", "gateway", "gateway_config", "serving_node", "town"]
