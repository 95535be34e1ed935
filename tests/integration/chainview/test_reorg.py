"""A registration, a rotation and a deposit that the chain takes back: the view says what the other branch says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openlora_chain.deploy import Parameters, deploy
from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.rpc import Rpc
from openlora_node.chainview import ChainView, Terms
from openlora_node.chainview.memory import MemoryLogs
from support.chain_world import ADAPTER, DEPLOYER, ETHER, OWNER, PAYER, ChainWorld, artifact_id, fresh_wallet

pytestmark = pytest.mark.slow
CHAIN_ID = 31337
BUNDLED = Path(__file__).parents[3] / "contracts/node_modules/@foundry-rs"


@pytest.fixture
async def fork() -> AsyncIterator[ChainWorld]:
    binary = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert binary, "anvil is missing: run `make setup`"
    anvil = await Anvil.start(binary, chain_id=CHAIN_ID)
    try:
        async with Rpc(anvil.url, first_pause_s=0.01) as rpc:
            for wallet in (OWNER, PAYER, DEPLOYER):
                await rpc.request("anvil_setBalance", f"0x{wallet.address.hex()}", hex(10**6 * ETHER))
            parameters = Parameters(DEPLOYER.address, DEPLOYER.address, DEPLOYER.address, min_commit_age=1)
            yield ChainWorld(rpc, await deploy(rpc, DEPLOYER, parameters, "test"))
    finally:
        await anvil.stop()


async def caught_up(view: ChainView) -> None:
    while await view.step():
        pass


async def test_what_a_reorg_takes_back_is_gone(fork: ChainWorld) -> None:
    view = ChainView(fork.rpc, fork.deployment, MemoryLogs(), poll_s=0.02)
    stays, rotated, late = (fresh_wallet(f"reorg {name}") for name in ("stays", "rotated", "late"))
    node = await fork.register_node(stays)
    artifact = artifact_id("reorg")
    await fork.register_artifact(OWNER, artifact, ADAPTER, 1)
    await caught_up(view)
    assert (await view.terms(artifact)).rate == 1
    before = (await fork.rpc.head()).number
    await fork.rotate_key(node, rotated)
    other = await fork.register_node(late)
    await fork.send(OWNER, fork.artifacts.set_terms(artifact, (2, 0, [])))
    await fork.send(PAYER, fork.settlement.deposit(node, ETHER))
    await caught_up(view)
    assert view.node_of(rotated.address) == node
    assert view.node_of(late.address) == other
    assert (await view.terms(artifact)).rate == 2
    assert (await view.escrow(PAYER.address, node)).balance == ETHER
    depth = (await fork.rpc.head()).number - before
    await fork.rpc.request("anvil_reorg", depth, [])
    await caught_up(view)
    assert view.node_of(rotated.address) is None
    assert view.node_of(stays.address) == node
    assert view.node_of(late.address) is None
    assert view.node(other) is None
    assert (await view.terms(artifact)).rate == 1
    assert await view.terms_at(artifact, 2) is None
    assert (await view.escrow(PAYER.address, node)).balance == 0
    # The other branch goes on: the same id goes to another key.
    assert await fork.register_node(fresh_wallet("reorg other")) == other
    await caught_up(view)
    assert view.node_of(fresh_wallet("reorg other").address) == other


async def test_a_reorg_while_the_node_was_off_is_seen_at_the_start(fork: ChainWorld, tmp_path: Path) -> None:
    store, nodes = MemoryLogs(), tmp_path / "nodes.json"

    async def run() -> ChainView:
        view = ChainView(fork.rpc, fork.deployment, store, snapshot=nodes, poll_s=0.02)
        await caught_up(view)
        await view.close()
        return view

    await run()
    late = fresh_wallet("offline reorg")
    await fork.register_node(late)
    assert (await run()).node_of(late.address) is not None
    await fork.rpc.request("anvil_reorg", 1, [])
    view = await run()
    assert view.node_of(late.address) is None
    artifact = artifact_id("offline reorg")
    assert await view.terms(artifact) == Terms(artifact)
