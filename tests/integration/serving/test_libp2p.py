"""Serving over real libp2p on 127.0.0.1, with a scripted engine, a real journal and real signatures."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import openlora_node.network  # noqa: F401 - imports libp2p quietly, before anything else does
from openlora_node.network.inference import Exchange, InferClient
from openlora_node.protocol import messages
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import Quote, Receipt, ReceiptStatus, output_hash
from support import network_infer
from support.serving_world import DOMAIN, NODE_KEY, OPTIONS, World


@asynccontextmanager
async def serving(path: Path, **options: object):
    """A world served over libp2p: the world, a client, the node's id on the network."""
    async with (
        World(path, replace(OPTIONS, **({"answer_s": 20} | options))) as world,
        network_infer.world(world.serving.handle) as net,
    ):
        client = InferClient(net.payer)
        try:
            yield world, client, net.nodes[0].node
        finally:
            await client.close()


async def quoted(world: World, exchange: Exchange) -> Quote:
    await exchange.send(messages.AskQuote(id=1, payer=world.payer.address, pipeline=world.pipeline.pack()))
    reply = await exchange.receive()
    assert isinstance(reply, messages.QuoteReply)
    signed = Signed.unpack(Quote, reply.quote)
    assert signed.signer(DOMAIN) == NODE_KEY.address
    return signed.value


async def until(exchange: Exchange, kind: type) -> list[messages.InferMessage]:
    got: list[messages.InferMessage] = []
    while not (got and isinstance(got[-1], kind)):
        got.append(await exchange.receive())
    return got


def ids(got: list[messages.InferMessage]) -> list[int]:
    return [token for message in got if isinstance(message, messages.Tokens) for token in message.token_ids]


async def test_one_paid_request_over_libp2p(tmp_path: Path) -> None:
    async with serving(tmp_path / "j.sqlite") as (world, client, node):
        body = world.body()
        async with await client.open(node) as exchange:
            quote = await quoted(world, exchange)
            signed = world.request(quote, body, max_tokens=50)
            opening = world.opening(Tally(), world.prompt_of(body))
            await exchange.send(world.infer(signed, body, opening))
            got = await until(exchange, messages.Done)
            receipt = Signed.unpack(Receipt, got[-1].receipt)
            assert receipt.signer(DOMAIN) == NODE_KEY.address
            assert receipt.value.output_hash == output_hash(ids(got))
            assert ids(got) == list(range(50))
            due = world.due(Tally(), world.prompt_of(body), 50)
            await exchange.send(
                messages.Pay(
                    id=1,
                    voucher=world.payer.voucher(
                        world.pipeline.id, due.tokens, due.compute, answers=receipt.value.digest(DOMAIN)
                    ),
                )
            )
            settled = await exchange.receive()
            assert settled.cumulative_tokens == due.tokens
        assert (await world.ledger()).owed == 0
        await world.journal.check_integrity(deep=True)


async def test_many_requests_of_one_payer_side_by_side_add_up(tmp_path: Path) -> None:
    async with serving(tmp_path / "j.sqlite", in_flight_per_payer=64, unpaid_tokens=40) as (world, client, node):
        count, each, body = 16, 20, world.body()
        prompt = world.prompt_of(body)
        opened = [await client.open(node) for _ in range(count)]
        quote = await quoted(world, opened[0])

        received = 0

        def voucher(prompts: int, answers: bytes = bytes(32)) -> bytes:
            """For the prompts that were sent and every token that came, as a payer's book has it."""
            due = world.due(Tally(), prompt * prompts, received)
            return world.payer.voucher(world.pipeline.id, due.tokens, due.compute, answers=answers)

        async def one(exchange: Exchange, number: int) -> list[messages.InferMessage]:
            nonlocal received
            signed = world.request(quote, body, max_tokens=each)
            await exchange.send(world.infer(signed, body, voucher(number + 1)))
            got: list[messages.InferMessage] = []
            while not (got and isinstance(got[-1], messages.Done)):
                got.append(await exchange.receive())
                received += len(ids(got[-1:]))
                if isinstance(got[-1], messages.Paused):
                    await exchange.send(messages.Pay(id=1, voucher=voucher(count)))
            answers = Signed.unpack(Receipt, got[-1].receipt).value.digest(DOMAIN)
            await exchange.send(messages.Pay(id=1, voucher=voucher(count, answers)))
            got += await until(exchange, messages.Settled)
            return got

        # Each opening voucher covers the prompts before it, so they are sent in that order.
        everything = await asyncio.gather(*(one(exchange, number) for number, exchange in enumerate(opened)))
        due = world.due(Tally(), prompt * count, each * count)
        assert received == each * count
        assert max(got[-1].cumulative_tokens for got in everything) == due.tokens
        assert [ids(got) for got in everything] == [list(range(each))] * count
        ledger = await world.ledger()
        assert (ledger.tally, ledger.owed, ledger.reserved) == (due, 0, 0)
        await world.journal.check_integrity(deep=True)


async def test_a_broken_stream_is_attached_to_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "j.sqlite") as (world, client, node):
        body = world.body()
        world.engine.hold = 10
        first = await client.open(node)
        signed = world.request(await quoted(world, first), body)
        request = world.infer(signed, body, world.opening(Tally(), world.prompt_of(body)))
        await first.send(request)
        got: list[messages.InferMessage] = []
        while len(ids(got)) < 10:
            got.append(await first.receive())
        await client.close()  # every stream with it
        another = InferClient(client._network)
        second = await another.open(node)
        await second.send(request)
        world.engine.release.set()
        got = await until(second, messages.Done)
        assert ids(got) == list(range(20))
        assert world.engine.calls == 1
        await another.close()


async def test_a_cancel_over_libp2p_is_receipted(tmp_path: Path) -> None:
    async with serving(tmp_path / "j.sqlite") as (world, client, node):
        body = world.body()
        world.engine.hold = 10
        async with await client.open(node) as exchange:
            signed = world.request(await quoted(world, exchange), body)
            await exchange.send(world.infer(signed, body, world.opening(Tally(), world.prompt_of(body))))
            await world.engine.held.wait()
            await exchange.send(messages.Cancel(id=1))
            got = await until(exchange, messages.Done)
        receipt = Signed.unpack(Receipt, got[-1].receipt).value
        assert (receipt.status, receipt.completion_tokens) == (ReceiptStatus.CANCELLED, 10)


async def test_a_refusal_and_a_late_result_travel_as_they_are(tmp_path: Path) -> None:
    async with serving(tmp_path / "j.sqlite", recent_count=0, closing_s=0.05, answer_s=0.05) as (world, client, node):
        body = world.body()
        async with await client.open(node) as exchange:
            signed = world.request(await quoted(world, exchange), body, max_fee=1)
            await exchange.send(world.infer(signed, body))
            try:
                await exchange.receive()
            except OpenLoraError as error:
                assert error.code is ErrorCode.MAX_FEE_TOO_LOW
                least = world.least_fee(world.prompt_of(body), 20)
                assert str(least) in error.message
        async with await client.open(node) as exchange:
            signed = world.request(await quoted(world, exchange), body, max_fee=least)
            request = world.infer(signed, body, world.opening(Tally(), world.prompt_of(body)))
            await exchange.send(request)
            first = (await until(exchange, messages.Done))[-1]
            assert isinstance(
                await exchange.receive(), messages.Settled
            )  # nobody paid: it tells how far the voucher goes
        async with await client.open(node) as exchange:
            await exchange.send(request)
            again = await exchange.receive()
            assert again.receipt == first.receipt
            assert again.finish_reason == "expired"
            try:
                await exchange.receive()
            except OpenLoraError as error:
                assert error.code is ErrorCode.RESULT_EXPIRED
