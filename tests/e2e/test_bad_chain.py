"""A village whose chain goes away for a minute and takes back what it had: requests go on, the books balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from openai import APIError

from openlora_chain.deploy import Parameters, deploy
from openlora_chain.devnet.accounts import DEVNET_CHAIN_ID
from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.rpc import Rpc
from openlora_node.journal import Ledger
from openlora_node.settlement.accounting import read_totals
from support.chain_world import DEPLOYER, ETHER, OWNER, PAYER
from support.e2e_village import Operator, Village, until, village_on
from support.rpcproxy import RpcProxy

from .test_two_operators import ask, books_agree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BUNDLED = Path(__file__).parents[2] / "contracts/node_modules/@foundry-rs"
CONFIRMATIONS = 6
DEPTH = 4
"""Of the reorg: less than what makes a block final."""
DOWN_S = 60.0


@asynccontextmanager
async def bad_chain(folder: Path) -> AsyncIterator[tuple[RpcProxy, Rpc, Path]]:
    """anvil with a block a second and our contracts, behind a proxy: (proxy, the chain itself, deployment file)."""
    binary = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert binary, "anvil is missing: run `make setup`"
    anvil = await Anvil.start(binary, chain_id=DEVNET_CHAIN_ID, arguments=("--block-time", "1"))
    try:
        async with Rpc(anvil.url, first_pause_s=0.01) as rpc, RpcProxy(anvil.url) as proxy:
            for wallet in (OWNER, PAYER, DEPLOYER):
                await rpc.request("anvil_setBalance", f"0x{wallet.address.hex()}", hex(10**6 * ETHER))
            parameters = Parameters(DEPLOYER.address, DEPLOYER.address, DEPLOYER.address, min_commit_age=1)
            deployment = await deploy(rpc, DEPLOYER, parameters, "devnet")
            file = folder / "deployment.json"
            deployment.write(file)
            yield proxy, rpc, file
    finally:
        await anvil.stop()


async def test_a_chain_that_goes_away_and_takes_back_costs_nobody_anything(tmp_path: Path) -> None:
    async with (
        bad_chain(tmp_path) as (proxy, rpc, deployment),
        village_on(tmp_path, proxy.url, deployment, rpc, confirmations=CONFIRMATIONS) as place,
    ):
        async with place.client() as client:
            await ask(client)
        await a_minute_without_a_chain(place, proxy)
        await books_agree(place)
        await redemptions_are_taken_back(place)
        async with place.client() as client:
            await ask(client)
        await books_agree(place)


async def a_minute_without_a_chain(place: Village, proxy: RpcProxy) -> None:
    """Customers go on asking: each is answered, or told that it is the chain. Afterwards all is as before."""
    outcomes: list[str] = []
    over = asyncio.Event()

    async def customer() -> None:
        async with place.client() as client:
            while not over.is_set():
                try:
                    await ask(client, 4)
                    outcomes.append("answered")
                except APIError as error:
                    outcomes.append(str(error.code))
                    await asyncio.sleep(1)

    async with asyncio.TaskGroup() as customers:
        for _ in range(2):
            customers.create_task(customer())
        proxy.hang = True
        await asyncio.sleep(DOWN_S)
        levels = [one.running.services(await one.running.ask("/status")) for one in place.operators]
        proxy.hang = False
        over.set()
    assert "answered" in outcomes, "what was known before serves on for a while"
    assert set(outcomes) <= {"answered", "CHAIN_FAILED", "CHAIN_STALE", "NO_NODE"}, set(outcomes)
    assert all(level["chain"] != "up" for level in levels), levels
    for operator in place.operators:
        await operator.running.until_serving(120)

    async def answered() -> bool:
        try:
            async with place.client() as client:
                await ask(client, 4)
        except APIError:
            return False
        return True

    await until(answered, "the gateway to have its chain again")


async def redemptions_are_taken_back(place: Village) -> None:
    """A redemption stands in a block that a reorg removes: it is sent again, once, and the wei are those vouchered."""
    owed = {operator.node: newest(operator) for operator in place.operators if newest(operator) is not None}
    assert owed
    for operator in place.operators:
        await operator.running.order("/settlement/redeem")
    before = {operator.node: await escrow(place, operator) for operator in place.operators}
    for operator in place.operators:
        await until(lambda operator=operator: is_redeemed(place, operator), "the redemption to stand in a block")
    await place.world.rpc.request("anvil_reorg", DEPTH, [])
    undone = [operator for operator in place.operators if not await is_redeemed(place, operator)]
    assert undone, "the reorg removed a redemption"
    for operator in place.operators:
        await until(lambda operator=operator: is_redeemed(place, operator), "the redemption to be sent again", 180)
        ledger = newest(operator)
        if ledger is None or ledger.newest_voucher is None:
            continue
        compute = ledger.newest_voucher.value.cumulative_compute

        async def is_booked(operator: Operator = operator, compute: int = compute) -> bool:
            totals = read_totals(operator.home.state / "node.sqlite")
            return totals.redeemed + totals.protocol == compute

        await until(is_booked, "the journal to book the redemption once it is final", 120)
        assert before[operator.node] - await escrow(place, operator) == compute, "paid once, to the wei"


def newest(operator: Operator) -> Ledger | None:
    """The payer's one ledger with a node, if there is any yet."""
    return next(iter(operator.ledgers()), None)


async def escrow(place: Village, operator: Operator) -> int:
    """Wei that the payer has with a node."""
    return (await place.world.settlement.account_of(PAYER.address, operator.node)).balance


async def is_redeemed(place: Village, operator: Operator) -> bool:
    """Whether the chain has accepted the node's newest voucher."""
    ledger = newest(operator)
    if ledger is None or ledger.newest_voucher is None:
        return True
    key, voucher = ledger.key, ledger.newest_voucher.value
    channel = await place.world.settlement.channel_of(PAYER.address, key.signer, key.node, key.pipeline)
    return (channel.compute, channel.tokens) == (voucher.cumulative_compute, voucher.cumulative_tokens)
