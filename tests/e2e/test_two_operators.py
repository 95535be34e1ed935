"""Two operators and a payer through a bad day: processes killed at the worst moments, and the books still balance.

Real processes, engines, libp2p and a chain; a tiny random model. One village for all scenes, since starting it takes
longer than any of them; each scene leaves it whole.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIError, AsyncOpenAI

from openlora_node.journal import Ledger, LedgerKey
from support.chain_world import PAYER
from support.e2e_village import MODEL, Operator, Village, freeze, thaw, until, village

QUESTION = [{"role": "user", "content": "the quick brown fox"}]


async def ask(client: AsyncOpenAI, max_tokens: int = 8, **extra: Any) -> tuple[str, dict[str, Any]]:
    """One streamed answer: its text and what the gateway says of it. Raises what the client raises."""
    text, about = "", None
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=max_tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": True, **extra},
    )  # fmt: skip
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        about = (chunk.model_extra or {}).get("openlora") or about
    assert about is not None
    return text, about


async def busy_one(place: Village) -> Operator:
    """The operator that has the request now."""

    async def look() -> Operator | None:
        for operator in place.operators:
            if operator.process is not None and await operator.busy():
                return operator
        return None

    return await until(look, "a node to take the request")  # type: ignore[no-any-return]


def totals(ledgers: list[Ledger]) -> dict[LedgerKey, tuple[int, int]]:
    """Ledger → tokens and fee of its receipts."""
    return {ledger.key: (ledger.tally.tokens, ledger.fee) for ledger in ledgers if ledger.tally.tokens}


def vouchered(ledgers: list[Ledger]) -> dict[LedgerKey, int]:
    """Ledger → wei that its newest voucher is worth."""
    return {ledger.key: ledger.voucher_value for ledger in ledgers}


async def books_agree(place: Village, seconds: float = 120.0) -> None:
    """Wait until payer and nodes have the same receipts, and nobody owes anybody."""

    async def look() -> bool:
        nodes = [ledger for operator in place.operators for ledger in operator.ledgers()]
        return totals(nodes) == totals(place.payer_ledgers()) and not any(ledger.owed for ledger in nodes)

    await until(look, "payer and nodes to agree", seconds)
    for operator in place.operators:
        with operator.journal() as reader:
            reader.check_integrity(deep=True)


async def killed_before_its_first_token(place: Village) -> None:
    """Another node answers; one receipt, one fee."""
    before = sum(fee for _, fee in totals(place.payer_ledgers()).values())
    engines = [await operator.engine() for operator in place.operators]
    for pid in engines:
        freeze(pid)
    async with place.client() as client:
        asked = asyncio.create_task(ask(client))
        victim = await busy_one(place)
        await victim.kill()
        for pid in engines:
            thaw(pid)
        text, about = await asked
    assert text
    survivor = place.operator_of(about["node"])
    assert survivor is not victim
    await victim.start()
    await books_agree(place)
    after = sum(fee for _, fee in totals(place.payer_ledgers()).values())
    assert after - before == int(about["fee"])


async def killed_in_mid_stream(place: Village) -> None:
    """The stream ends with NODE_LOST; no receipt, and the vouchers given are all that the node can redeem."""
    before = totals(place.payer_ledgers())
    paid = vouchered(place.payer_ledgers())
    frozen: list[int] = []
    async with place.client() as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=220, stream=True, extra_body={"ignore_eos": True}
        )
        with pytest.raises(APIError) as error:
            async for _ in stream:
                if not frozen:
                    victim = await busy_one(place)
                    frozen.append(await victim.engine())
                    freeze(frozen[0])
                    await victim.kill()
    assert "NODE_LOST" in str(error.value.body) + str(error.value)
    assert totals(place.payer_ledgers()) == before
    given = vouchered(place.payer_ledgers())
    held = vouchered(victim.ledgers())
    assert all(held[key] <= given[key] for key in held), "a node holds no voucher that the payer does not know of"
    (lost, *_) = (await place.spend())["requests"]
    assert (lost["node"], lost["receipt"]) == (f"0x{victim.node.hex()}", None)
    assert sum(given.values()) - sum(paid.values()) == int(lost["wei"]) > 0, "what was signed is what the history tells"
    await victim.start()
    await books_agree(place)


async def traffic_while_a_node_dies_again_and_again(place: Village) -> None:
    """Every request ends in an answer or a clear error, and every receipt is in both books."""
    dice = random.Random(7)
    done = asyncio.Event()
    outcomes: list[str] = []

    async def customer(client: AsyncOpenAI) -> None:
        while not done.is_set():
            try:
                await ask(client, dice.randrange(4, 40))
                outcomes.append("answered")
            except APIError as error:
                outcomes.append(f"{error.code} {error.message}")

    async with place.client() as client, asyncio.TaskGroup() as customers:
        for _ in range(4):
            customers.create_task(customer(client))
        for _ in range(2):
            count = len(outcomes)

            async def some_more(count: int = count) -> bool:
                return len(outcomes) >= count + 6

            await until(some_more, "traffic")
            await place.operators[0].kill()
            await place.operators[0].start()
        done.set()
    assert "answered" in outcomes
    unclear = [outcome for outcome in outcomes if outcome != "answered" and "INTERNAL" in outcome]
    assert not unclear
    await books_agree(place)


async def two_hundred_at_once(place: Village) -> None:
    """Streams through gateway, libp2p and engines: all end well, and their fees are what the books say."""
    before = sum(fee for _, fee in totals(place.payer_ledgers()).values())
    async with place.client() as client:
        answers = await asyncio.gather(*(ask(client, 4, seed=number) for number in range(200)))
    assert len({about["receipt"] for _, about in answers}) == 200
    await books_agree(place)
    after = sum(fee for _, fee in totals(place.payer_ledgers()).values())
    assert after - before == sum(int(about["fee"]) for _, about in answers)


async def the_payer_dies_too(place: Village) -> None:
    """kill -9 of the gateway in mid-stream: started again, it pays what it owed and goes on."""
    async with place.client() as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=220, stream=True, extra_body={"ignore_eos": True}
        )
        with pytest.raises((APIError, httpx2.HTTPError)):  # a connection that breaks
            async for _ in stream:
                if place.gateway is not None:
                    await place.kill_gateway()
    await place.start_gateway()
    async with place.client() as client:
        await ask(client)
    await books_agree(place)


async def the_payers_clock_is_wrong(place: Village) -> None:
    """A hundred seconds ahead: nodes refuse what it signs, with the reason, and nothing is charged.

    Set right again it does not start at once: its journal is ahead of the clock.
    """
    before = totals(place.payer_ledgers())
    await place.kill_gateway()
    await place.start_gateway(skew_s=100)
    async with place.client() as client:
        with pytest.raises(APIError) as error:
            await ask(client)
    assert error.value.code == "NOT_YET_VALID", error.value.body
    await place.kill_gateway()
    with pytest.raises(AssertionError, match="set the clock: the journal holds entries"):
        await place.start_gateway()
    place.gateway = None
    assert totals(place.payer_ledgers()) == before
    await books_agree(place)


async def the_chain_pays_what_the_journals_hold(place: Village) -> None:
    """The payer begins to take its escrow out: both nodes redeem at once, and the chain has paid what was vouchered."""
    if place.gateway is not None:
        await place.kill_gateway()
    for operator in place.operators:
        await place.world.send(PAYER, place.world.settlement.thaw(operator.node, 1))
    for operator in place.operators:
        for ledger in operator.ledgers():
            voucher = ledger.newest_voucher
            assert voucher is not None
            wanted = (voucher.value.cumulative_compute, voucher.value.cumulative_tokens)

            async def is_redeemed(key: LedgerKey = ledger.key, wanted: tuple[int, int] = wanted) -> bool:
                await place.world.mine()
                channel = await place.world.settlement.channel_of(PAYER.address, key.signer, key.node, key.pipeline)
                return (channel.compute, channel.tokens) == wanted

            await until(is_redeemed, "the node to redeem", 150)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_operators_and_a_payer_through_a_bad_day(tmp_path: Path) -> None:
    async with village(tmp_path) as place:
        async with place.client() as client:
            _, about = await ask(client)
            assert int(about["fee"]) > 0
        await books_agree(place)
        for scene in (
            killed_before_its_first_token,
            killed_in_mid_stream,
            two_hundred_at_once,
            traffic_while_a_node_dies_again_and_again,
            the_payer_dies_too,
            the_payers_clock_is_wrong,
            the_chain_pays_what_the_journals_hold,
        ):
            await scene(place)
