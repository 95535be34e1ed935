"""Escrows are kept funded, within their bounds, and what the chain redeemed stands against them no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.chainview import EscrowState
from openlora_node.gateway.escrow import DEPOSIT, EscrowRules, Standing, deposit_needed
from openlora_node.gateway.purse import Caps
from openlora_node.journal import spending
from openlora_node.journal.outbox import recent_intents
from openlora_node.openai import parse_body
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.gateway_world import PAYER_KEY, Script, chat, world

WEI = st.integers(0, 10**20)


@given(balance=WEI, thawing=WEI, owed=WEI, per_node=st.integers(1, 10**19), per_day=WEI, today=WEI, least=WEI)
def test_no_deposit_passes_a_bound(
    balance: int, thawing: int, owed: int, per_node: int, per_day: int, today: int, least: int
) -> None:
    standing = Standing(balance, min(balance, thawing), owed)
    rules = EscrowRules(4, per_node, per_day)
    wei = deposit_needed(standing, rules, today, least)
    assert wei >= 0
    assert today + wei <= max(today, per_day)
    assert standing.free + wei <= max(standing.free, per_node)
    if wei:
        assert standing.free < max(per_node // 2, least)


async def test_the_first_request_of_a_node_waits_for_its_deposit(tmp_path: Path) -> None:
    rules = EscrowRules(2, 10**16, 10**17)
    async with world(tmp_path, rules=rules, funded=False) as w:
        text, _ = await w.ask()
        assert text
        await w.settle_down()
        assert w.chain.escrows[w.nodes[0].node].balance == 10**16
        intents = await w.purse.journal.transact(lambda tx: recent_intents(tx, 10))
        assert [intent.request.kind for intent in intents] == [DEPOSIT]


async def test_requests_side_by_side_deposit_once(tmp_path: Path) -> None:
    async with world(tmp_path, rules=EscrowRules(2, 10**16, 10**17), funded=False) as w:
        await asyncio.gather(*(w.ask(text=f"number {n}") for n in range(6)))
        await w.settle_down()
        assert w.chain.escrows[w.nodes[0].node].balance == 10**16


async def test_no_more_nodes_are_funded_than_allowed(tmp_path: Path) -> None:
    busy = OpenLoraError(ErrorCode.BUSY)
    scripts = [Script(refuse=busy), Script(refuse=busy), Script()]
    async with world(tmp_path, *scripts, rules=EscrowRules(2, 10**16, 10**17), funded=False) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.BUSY
        await w.settle_down()
        assert len(w.chain.escrows) == 2
        assert w.nodes[2].requests == []


async def test_deposits_of_a_day_stay_within_its_cap(tmp_path: Path) -> None:
    rules = EscrowRules(8, 10**16, 2 * 10**16)
    busy = OpenLoraError(ErrorCode.BUSY)
    scripts = [Script(refuse=busy), Script(refuse=busy), Script()]
    async with world(tmp_path, *scripts, rules=rules, funded=False) as w:
        # The scripted outbox closes intents as cancelled: count what reached the chain instead.
        w.sender.carries = False
        for node in w.nodes:
            await w.escrows.top_up(node.node)
        intents = await w.purse.journal.transact(lambda tx: recent_intents(tx, 10))
        assert sum(intent.request.value for intent in intents) == 2 * 10**16
        assert len(intents) == 2
        w.clock.now += spending.DAY_S + 1
        assert await w.escrows.top_up(w.nodes[2].node) is not None


async def test_a_deposit_that_does_not_come_says_why(tmp_path: Path) -> None:
    async with world(tmp_path, funded=False) as w:
        w.sender.carries = False
        w.sender.blocked = "the key 0x01 lacks 5 wei"
        w.escrows._timeout_s = 0.05
        with pytest.raises(OpenLoraError, match="lacks 5 wei") as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.ESCROW_TOO_LOW
        assert w.nodes[0].requests == []


async def test_a_funded_node_goes_before_one_that_must_be_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path, Script(), Script(), funded=False) as w:
        w.chain.escrows[w.nodes[1].node] = EscrowState(10**17)
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[1].node
        await w.settle_down()
        # Meanwhile the other one is funded, for the next time.
        await w.sender.carry_out()
        assert w.chain.escrows[w.nodes[0].node].balance == 10**16


async def test_what_the_chain_redeemed_frees_the_escrow(tmp_path: Path) -> None:
    # The escrow holds little more than one request: without noting redemptions the second would not be let out.
    async with world(tmp_path, caps=Caps(10**15, 10**16), rules=EscrowRules(1, 1, 1)) as w:
        node = w.nodes[0]
        prepared = await w.payer.prepare(parse_body(chat(max_tokens=12), 1 << 20))
        (_, _, most), *_ = await w.payer.quotes(prepared)
        w.chain.escrows[node.node] = EscrowState(most + 10)
        _, answer = await w.ask(max_tokens=12)
        assert answer.finished is not None
        await w.settle_down()
        with pytest.raises(OpenLoraError) as caught:
            await w.ask(max_tokens=12)
        assert caught.value.code is ErrorCode.ESCROW_TOO_LOW
        newest = node.vouchers[-1].value
        w.chain.channels[node.node, prepared.pipeline.id] = (newest.cumulative_tokens, newest.cumulative_compute, 0)
        w.chain.escrows[node.node] = EscrowState(most + 5)
        _, answer = await w.ask(max_tokens=12)
        assert answer.finished is not None
        await w.settle_down()
        standing = await w.escrows.standing(node.node)
        assert standing.owed == answer.finished.receipt.fee
        assert PAYER_KEY.address
