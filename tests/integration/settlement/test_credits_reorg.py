"""Decisions that the chain takes back before they are final: each is made again, once, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openlora_chain.deploy import Parameters, deploy
from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.events import CreditsPosted, EventTable
from openlora_chain.rpc import Rpc
from support.chain_world import DEPLOYER, ETHER, OWNER, ChainWorld
from support.credits_place import ASSIGNED, Place, place

pytestmark = pytest.mark.slow
CHAIN_ID = 31337
TIMELOCK_S, WINDOW_S = 60, 3_600
DEPTH = 4
"""Confirmations of the node: a reorg of one block is well within."""
BUNDLED = Path(__file__).parents[3] / "contracts/node_modules/@foundry-rs"


@pytest.fixture
async def fork() -> AsyncIterator[ChainWorld]:
    binary = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert binary, "anvil is missing: run `make setup`"
    anvil = await Anvil.start(binary, chain_id=CHAIN_ID)
    try:
        async with Rpc(anvil.url, first_pause_s=0.01) as rpc:
            for wallet in (OWNER, DEPLOYER):
                await rpc.request("anvil_setBalance", f"0x{wallet.address.hex()}", hex(10**6 * ETHER))
            parameters = Parameters(
                DEPLOYER.address,
                DEPLOYER.address,
                DEPLOYER.address,
                min_commit_age=1,
                credits_timelock=TIMELOCK_S,
                credits_window=WINDOW_S,
            )
            yield ChainWorld(rpc, await deploy(rpc, DEPLOYER, parameters, "test"))
    finally:
        await anvil.stop()


async def mined(here: Place) -> None:
    """What is queued stands in the newest block, and is not final."""
    before = (await here.world.rpc.head()).number
    await here.desk.outbox.step()
    await here.desk.outbox.step()
    assert (await here.world.rpc.head()).number == before + 1
    assert here.desk.outbox.status.mined == 1


async def undo(here: Place) -> None:
    """The newest block is gone, and no pool remembers its transactions."""
    await here.world.rpc.request("anvil_reorg", 1, [])
    await here.world.rpc.request("anvil_dropAllTransactions")


async def posted(here: Place) -> list[tuple[int, int]]:
    """(epoch, total) of every post that stands on the chain."""
    table = EventTable(here.world.deployment, (CreditsPosted,))
    head = (await here.world.rpc.head()).number
    logs = await here.world.rpc.logs(0, head, table.addresses, table.topics)
    return [(event.epoch, event.total_credited) for event in table.decode_all(logs) if isinstance(event, CreditsPosted)]


async def test_a_post_that_a_reorg_removes_is_posted_again_once(fork: ChainWorld, tmp_path: Path) -> None:
    async with place(fork, tmp_path, "post undone", confirmations=DEPTH) as here:
        await here.serve(1, 900_000)
        await here.desk.catch_up()
        assert await here.desk.service.decide_now() == 1
        await mined(here)
        first = await fork.credits.pending_of(here.desk.node, here.dataset)
        assert first is not None
        await undo(here)
        assert await fork.credits.pending_of(here.desk.node, here.dataset) is None
        assert await here.desk.service.decide_now() == 0, "the outbox sends it again: no second post of the same"
        await here.desk.send()
        again = await fork.credits.pending_of(here.desk.node, here.dataset)
        assert again is not None
        assert (again.root, again.total, again.through) == (first.root, first.total, first.through)
        assert await posted(here) == [(1, ASSIGNED * 9 // 10)]
        assert (await here.desk.kinds()).count("credits") == 1


async def test_an_activation_that_a_reorg_removes_comes_again_and_the_next_epoch_continues_it(
    fork: ChainWorld, tmp_path: Path
) -> None:
    async with place(fork, tmp_path, "activation undone", confirmations=DEPTH) as here:
        await here.serve(1, 900_000)
        assert await here.decide() == 1
        await here.pass_time(TIMELOCK_S + 1)
        await here.desk.catch_up()
        assert await here.desk.service.decide_now() == 1
        await mined(here)
        assert (await here.in_force())[:2] == (1, ASSIGNED * 9 // 10)
        assert await here.desk.service.decide_now() == 0, "this round takes it for decided"
        await undo(here)
        assert await here.in_force() == (0, 0, bytes(32))
        assert await here.desk.service.decide_now() == 0
        await here.desk.send()
        assert (await here.in_force())[:2] == (1, ASSIGNED * 9 // 10)
        await here.serve(2, 0, 100_000)
        assert await here.decide() == 1
        await here.pass_time(TIMELOCK_S + 1)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (2, ASSIGNED * 9 // 10 + ASSIGNED // 10)
        assert await posted(here) == [(1, ASSIGNED * 9 // 10), (2, ASSIGNED)]


async def test_a_veto_that_a_reorg_removes_leaves_the_post_to_come_into_force(fork: ChainWorld, tmp_path: Path) -> None:
    """The owner's wallet does not send it again: what the node took for refused is not lost."""
    async with place(fork, tmp_path, "veto undone", confirmations=DEPTH) as here:
        await here.serve(1, 900_000)
        assert await here.decide() == 1
        await fork.send(here.owner, fork.credits.veto(here.desk.node, here.dataset))
        await here.tell_time()
        assert await here.desk.service.decide_now() == 0, "this round takes it for decided"
        await undo(here)
        assert await fork.credits.pending_of(here.desk.node, here.dataset) is not None
        await here.pass_time(TIMELOCK_S + 1)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (1, ASSIGNED * 9 // 10)
        assert await posted(here) == [(1, ASSIGNED * 9 // 10)]
