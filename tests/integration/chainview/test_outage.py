"""The view without its chain: it starts, says so, serves what is young enough, and recovers by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from openlora_chain.errors import ChainError
from openlora_chain.rpc import Rpc
from openlora_node.chainview import ChainView, open_chain
from openlora_node.chainview.memory import MemoryLogs
from openlora_node.config.schema import Chain
from openlora_node.journal.logs import JournalLogs
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.health import Level
from support.chain_world import ADAPTER, ETHER, OWNER, PAYER, ChainWorld, artifact_id, fresh_wallet
from support.journal import open_journal
from support.rpcproxy import RpcProxy

pytestmark = pytest.mark.slow


class Clock:
    """Seconds that a test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def brisk(url: str) -> Rpc:
    return Rpc(url, tries=1, timeout_s=2)


async def level_of(view: ChainView, level: Level) -> None:
    """Wait until the running view says so."""
    async with asyncio.timeout(15):
        while view.health().level is not level:
            await asyncio.sleep(0)


async def test_it_serves_from_memory_while_the_chain_is_gone_and_recovers(
    world: ChainWorld, devnet_at: tuple[str, Path]
) -> None:
    clock = Clock()
    async with RpcProxy(devnet_at[0]) as proxy, brisk(proxy.url) as rpc:
        view = ChainView(rpc, world.deployment, MemoryLogs(), poll_s=0.02, clock=clock)
        key = fresh_wallet("outage")
        node = await world.register_node(key)
        artifact = artifact_id("outage")
        await world.register_artifact(OWNER, artifact, ADAPTER, 5)
        await world.send(PAYER, world.settlement.deposit(node, ETHER))
        while await view.step():
            pass
        assert (await view.terms(artifact)).rate == 5
        assert (await view.escrow(PAYER.address, node)).balance == ETHER
        proxy.statuses = [503] * 1_000
        with pytest.raises(ChainError):
            await view.step()
        health = view.health()
        assert health.level is Level.DEGRADED
        assert "503" in health.reason
        seen = len(proxy.seen)
        clock.now += 20
        assert view.node_of(key.address) == node
        assert (await view.terms(artifact)).rate == 5
        assert (await view.escrow(PAYER.address, node)).balance == ETHER
        assert len(proxy.seen) == seen  # known to be down: nobody waits for a time-out
        with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
            await view.terms(artifact_id("never read"))
        clock.now += 15  # half of the devnet's thaw of 60 s: escrow could be gone soon
        with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
            await view.escrow(PAYER.address, node)
        assert (await view.terms(artifact)).rate == 5
        clock.now += 600
        with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
            await view.terms(artifact)
        proxy.statuses.clear()
        await view.step()
        assert view.health().level is Level.UP
        assert (await view.terms(artifact)).rate == 5


async def test_it_starts_without_the_chain_and_catches_up_when_it_comes(
    world: ChainWorld, devnet_at: tuple[str, Path]
) -> None:
    key = fresh_wallet("late chain")
    node = await world.register_node(key)
    async with RpcProxy(devnet_at[0]) as proxy:
        proxy.statuses = [503] * 200
        options = Chain(rpc_urls=(proxy.url,), poll_interval="100ms")
        async with open_chain(options, devnet_at[1]) as parts:
            view = parts.view
            assert view.health().level is Level.INITIALIZING
            running = asyncio.create_task(view.run(), name="view")
            await level_of(view, Level.DEGRADED)
            assert view.node_of(key.address) is None
            with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
                await view.terms(artifact_id("none"))
            proxy.statuses.clear()
            async with asyncio.timeout(20):
                await view.wait_synced()
            assert view.node_of(key.address) == node
            await level_of(view, Level.UP)
            running.cancel()


async def test_another_chain_or_contract_is_refused_and_a_second_endpoint_is_taken(
    world: ChainWorld, devnet_at: tuple[str, Path], tmp_path: Path
) -> None:
    url, file = devnet_at
    document = json.loads(file.read_text())
    document["contracts"]["Credits"] = document["contracts"]["ReceiptAnchor"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(document))
    with pytest.raises(OpenLoraError, match="CONTRACT_MISMATCH"):
        async with open_chain(Chain(rpc_urls=(url,)), wrong):
            pass
    with pytest.raises(OpenLoraError, match=r"chain\.chain_id is 7"):
        async with open_chain(Chain(rpc_urls=(url,), chain_id=7), file):
            pass
    private = tmp_path / "urls"
    private.write_text("http://127.0.0.1:9\n# a comment\n\n")
    private.chmod(0o600)
    options = Chain(rpc_urls=(url,), rpc_url_file=str(private))
    async with open_chain(options, file) as parts:
        while await parts.view.step():
            pass
        assert parts.rpc.endpoint == 1
        assert parts.view.health().level is Level.UP
    private.chmod(0o644)
    with pytest.raises(OpenLoraError, match="CONFIG_SECRET"):
        async with open_chain(options, file):
            pass


async def test_an_endpoint_of_another_chain_is_never_believed(world: ChainWorld, devnet_at: tuple[str, Path]) -> None:
    async with RpcProxy(devnet_at[0]) as liar:
        liar.lie = lambda method, _params, result: "0x1" if method == "eth_chainId" else result
        async with Rpc([liar.url, devnet_at[0]], tries=1) as rpc:
            view = ChainView(rpc, world.deployment, MemoryLogs(), poll_s=0.02)
            with pytest.raises(ChainError, match="WRONG_CHAIN"):
                await view.step()
            assert view.health().level is Level.DOWN
            rpc.endpoint = 0
            with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
                await view.terms(artifact_id("x"))
            rpc.endpoint = 1
            while await view.step():
                pass
            assert view.health().level is Level.UP


async def test_a_restart_goes_on_from_its_snapshot(
    world: ChainWorld, devnet_at: tuple[str, Path], tmp_path: Path
) -> None:
    first, second = fresh_wallet("restart 1"), fresh_wallet("restart 2")
    node = await world.register_node(first)
    journal, nodes = tmp_path / "node.sqlite", tmp_path / "nodes.json"
    options = Chain(rpc_urls=(devnet_at[0],))

    async def once() -> tuple[bytes | None, bytes | None, list[str]]:
        async with RpcProxy(devnet_at[0]) as proxy, open_journal(journal) as opened:
            through = options.model_copy(update={"rpc_urls": (proxy.url,)})
            async with open_chain(through, devnet_at[1], JournalLogs(opened), snapshot=nodes) as parts:
                while await parts.view.step():
                    pass
                return parts.view.node_of(first.address), parts.view.node_of(second.address), proxy.seen

    assert (await once())[:2] == (node, None)
    assert nodes.stat().st_mode & 0o077 == 0
    other = await world.register_node(second)
    assert (await once())[:2] == (node, other)
    # Nothing new: one range, not the whole chain; the nodes come from the disk.
    found = await once()
    assert found[:2] == (node, other)
    assert found[2].count("eth_getLogs") <= 1
    # Without the snapshot the progress in the journal is worth nothing: everything is read again.
    nodes.unlink()
    assert (await once())[:2] == (node, other)
    # A rotation that no event told (an endpoint that leaves logs out) is found by reading nodes at intervals.
    await world.rotate_key(node, fresh_wallet("restart 3"))
    async with RpcProxy(devnet_at[0]) as proxy, brisk(proxy.url) as rpc, open_journal(journal) as opened:
        proxy.lie = lambda method, _params, result: [] if method == "eth_getLogs" else result
        clock = Clock()
        view = ChainView(rpc, world.deployment, JournalLogs(opened), snapshot=nodes, poll_s=0.02, clock=clock)
        while await view.step():
            pass
        for _ in range(8):
            clock.now += 60
            await world.mine()
            await view.step()
        assert view.node_of(first.address) is None
        assert view.key_of(node) == fresh_wallet("restart 3").address


async def test_reads_from_memory_are_fast(world: ChainWorld) -> None:
    view = ChainView(world.rpc, world.deployment, MemoryLogs(), poll_s=60)
    while await view.step():
        pass
    artifact = artifact_id("fast")
    await view.terms(artifact)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20_000):
        await view.terms(artifact)
    assert 20_000 / (loop.time() - began) > 10_000
