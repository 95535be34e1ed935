"""The same request sent again: attached, repeated from memory, or told that it was served; never charged twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.pricing import Tally
from support.serving_world import OPTIONS, OWNER, World, receipt_of, refused


@pytest.fixture
async def world(tmp_path: Path):
    async with World(tmp_path / "journal.sqlite", OPTIONS) as made:
        yield made


async def signed_request(world: World):
    body = world.body()
    signed = world.request((await world.quote()).value, body)
    return signed, body, world.opening(Tally(), world.prompt_of(body))


def output(inbound) -> list[int]:
    return [token for message in inbound.of(messages.Tokens) for token in message.token_ids]


async def test_a_running_request_is_attached_to(world: World) -> None:
    signed, body, opening = await signed_request(world)
    world.engine.hold = 5
    first = world.handle(world.infer(signed, body, opening))
    await world.engine.held.wait()
    first.lose()
    assert (await refused(first)).code is ErrorCode.NODE_LOST
    second = world.handle(world.infer(signed, body, opening), peer="another")
    await second.until_tokens(5)
    world.engine.release.set()
    await second.until(messages.Done)
    assert output(second) == list(range(20))
    assert world.engine.calls == 1
    await world.settle(second)
    assert (await world.tally()).tokens == receipt_of(second).tokens


async def test_two_streams_follow_one_response(world: World) -> None:
    signed, body, opening = await signed_request(world)
    both = [world.handle(world.infer(signed, body, opening)) for _ in range(2)]
    for inbound in both:
        await inbound.until(messages.Done)
    assert output(both[0]) == output(both[1])
    tally = await world.tally()
    both[1].pay(world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute))
    await asyncio.gather(*(inbound.task for inbound in both))
    assert world.engine.calls == 1


async def test_a_finished_response_is_repeated_for_five_minutes_even_if_the_request_expired(world: World) -> None:
    signed, body, opening = await signed_request(world)
    first = world.handle(world.infer(signed, body, opening))
    await first.until(messages.Done)
    await world.settle(first)
    world.clock.now += 300
    again = world.handle(world.infer(signed, body, opening))
    await again.task
    assert output(again) == output(first)
    assert receipt_of(again) == receipt_of(first)
    assert world.engine.calls == 1


async def test_later_only_the_receipt_is_left(world: World) -> None:
    signed, body, opening = await signed_request(world)
    first = world.handle(world.infer(signed, body, opening))
    await first.until(messages.Done)
    await world.settle(first)
    world.clock.now += 3_000
    again = world.handle(world.infer(signed, body, opening))
    assert (await refused(again)).code is ErrorCode.RESULT_EXPIRED
    assert receipt_of(again) == receipt_of(first)
    assert not output(again)


async def test_after_a_restart_only_the_receipt_is_left(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        signed, body, opening = await signed_request(world)
        first = world.handle(world.infer(signed, body, opening))
        await first.until(messages.Done)
        await world.settle(first)
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        again = world.handle(world.infer(signed, body, opening))  # the quote is forgotten as well
        assert (await refused(again)).code is ErrorCode.RESULT_EXPIRED
        assert receipt_of(again) == receipt_of(first)
        assert world.engine.calls == 0


async def test_still_valid_but_out_of_memory_only_the_receipt_is_left(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, recent_count=0)) as world:
        signed, body, opening = await signed_request(world)
        first = world.handle(world.infer(signed, body, opening))
        await first.until(messages.Done)
        await world.settle(first)
        again = world.handle(world.infer(signed, body))
        assert (await refused(again)).code is ErrorCode.RESULT_EXPIRED
        assert receipt_of(again) == receipt_of(first)


async def test_another_request_with_the_nonce_is_refused(world: World) -> None:
    signed, body, opening = await signed_request(world)
    first = world.handle(world.infer(signed, body, opening))
    await first.until(messages.Done)
    await world.settle(first)
    other = world.body("something else")
    forged = world.request((await world.quote()).value, other, nonce=signed.value.nonce)
    opening = world.opening(await world.tally(), world.prompt_of(other))
    assert (await refused(world.handle(world.infer(forged, other, opening)))).code is ErrorCode.NONCE_REUSED


async def test_the_nonce_of_a_running_request_is_refused_to_another(world: World) -> None:
    signed, body, opening = await signed_request(world)
    world.engine.hold = 0
    world.handle(world.infer(signed, body, opening))
    await world.engine.held.wait()
    other = world.body("something else")
    forged = world.request((await world.quote()).value, other, nonce=signed.value.nonce)
    opening = world.opening(world.due(Tally(), world.prompt_of(body), 0), world.prompt_of(other))
    assert (await refused(world.handle(world.infer(forged, other, opening)))).code is ErrorCode.NONCE_REUSED


async def test_nobody_else_gets_a_late_result(world: World) -> None:
    signed, body, opening = await signed_request(world)
    first = world.handle(world.infer(signed, body, opening))
    await first.until(messages.Done)
    await world.settle(first)
    world.clock.now += 3_000
    stolen = replace(signed, signature=OWNER.sign_digest(b"\x01" * 32))
    again = world.handle(world.infer(stolen, body, opening))
    assert (await refused(again)).code is ErrorCode.REQUEST_EXPIRED
    assert not again.sent


async def test_an_expired_request_that_was_never_served_stays_expired(world: World) -> None:
    signed, body, opening = await signed_request(world)
    world.clock.now += 361
    assert (await refused(world.handle(world.infer(signed, body, opening)))).code is ErrorCode.REQUEST_EXPIRED


async def test_a_request_found_running_at_the_start_is_released_and_may_be_sent_again(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        signed, body, opening = await signed_request(world)
        world.engine.hold = 3
        world.handle(world.infer(signed, body, opening))
        await world.engine.held.wait()
        for task in [*world.serving._tasks]:  # as a lost process would leave it
            task.cancel()
        await asyncio.gather(*world.serving._tasks, return_exceptions=True)
        assert (await world.ledger()).reserved == signed.value.max_fee
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        await world.serving.start()
        assert (await world.ledger()).reserved == 0
        fresh = (await world.quote()).value
        assert fresh.digest(world.chain.domain) == signed.value.quote_digest  # same second, same quote
        again = world.handle(world.infer(signed, body, opening))
        await again.until(messages.Done)
        await world.settle(again)
        assert (await world.tally()).tokens == receipt_of(again).tokens
