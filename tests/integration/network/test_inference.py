"""Requests over libp2p: one stream a pair of peers, shared by id, whatever its requests do."""

from __future__ import annotations

import asyncio

import pytest

from openlora_node.network.inference import Exchange, Inbound, InferClient
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import Accepted, Cancel, Done, InferMessage, QuoteReply, Settled
from support.network_infer import ASK, DONE, PAY, infer, scripted, texts, token_count, world


async def until_done(exchange: Exchange) -> list[InferMessage]:
    messages: list[InferMessage] = []
    while not (messages and isinstance(messages[-1], Done)):
        messages.append(await exchange.receive())
    return messages


async def whole(client: InferClient, node: bytes, tokens: int) -> list[InferMessage]:
    """A request from beginning to end."""
    async with await client.open(node) as exchange:
        await exchange.send(infer(str(tokens).encode()))
        messages = await until_done(exchange)
        await exchange.send(PAY)
        return [*messages, await exchange.receive()]


async def test_a_quote_then_a_request_on_one_exchange_and_one_stream_for_all() -> None:
    async with world() as w:
        client, node = InferClient(w.payer), w.nodes[0]
        async with await client.open(node.node) as exchange:
            await exchange.send(ASK)
            assert await exchange.receive() == QuoteReply(id=exchange.id, quote=b"quote")
            await exchange.send(infer(b"3"))
            messages = await until_done(exchange)
            assert messages[0] == Accepted(id=exchange.id, prompt_tokens=1)
            assert token_count(messages) == 3
            await exchange.send(PAY)
            assert await exchange.receive() == Settled(id=exchange.id, cumulative_tokens=1)
        answers = await asyncio.gather(*(whole(client, node.node, number) for number in range(1, 33)))
        assert [token_count(answer) for answer in answers] == list(range(1, 33))
        assert len({message.id for answer in answers for message in answer}) == 32
        assert node.streams == 1
        assert client.in_flight(node.node) == 0
        await client.close()


async def test_one_slow_request_holds_up_no_other() -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def handler(inbound: Inbound) -> None:
        if inbound.first == infer(b"slow").__class__(
            id=inbound.id, request=b"request", pipeline=b"pipeline", body=b"slow"
        ):
            waiting.set()
            await go_on.wait()
            await inbound.send(DONE)
            return
        await scripted(inbound)

    async with world(handler) as w:
        client, node = InferClient(w.payer), w.nodes[0].node
        slow = await client.open(node)
        await slow.send(infer(b"slow"))
        await waiting.wait()
        for _ in range(5):
            assert token_count(await whole(client, node, 2)) == 2
        go_on.set()
        assert texts(await until_done(slow)) == "Done"
        await client.close()


async def test_errors_end_their_id_only() -> None:
    async def handler(inbound: Inbound) -> None:
        if inbound.first.id % 3 == 0:
            raise OpenLoraError(ErrorCode.BUSY, "full", retry_after_ms=250, alternatives=(b"\x07" * 32,))
        if inbound.first.id % 3 == 1:
            raise KeyError("a bug")
        await scripted(inbound)

    async with world(handler) as w:
        client, node = InferClient(w.payer), w.nodes[0]
        seen = set()
        for _ in range(3):
            async with await client.open(node.node) as exchange:
                await exchange.send(infer(b"1"))
                try:
                    await until_done(exchange)
                    seen.add("done")
                except OpenLoraError as error:
                    seen.add(error.code.value)
                    if error.code is ErrorCode.BUSY:
                        assert (error.retry_after_ms, error.alternatives) == (250, (b"\x07" * 32,))
                    with pytest.raises(OpenLoraError):
                        await exchange.receive()
        assert seen == {"done", "BUSY", "INTERNAL"}
        assert node.streams == 1
        await client.close()


async def test_a_cancel_reaches_the_handler_and_its_receipt_the_payer() -> None:
    async def handler(inbound: Inbound) -> None:
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        watch = asyncio.create_task(inbound.receive())
        place = 0
        while not watch.done():
            await inbound.tokens(0, place, (1,), "x")
            place += 1
            await asyncio.sleep(0)
        assert isinstance(watch.result(), Cancel)
        await inbound.send(DONE)

    async with world(handler) as w:
        client, node = InferClient(w.payer), w.nodes[0].node
        exchange = await client.open(node)
        await exchange.send(infer(b""))
        assert isinstance(await exchange.receive(), Accepted)
        exchange.cancel()
        await until_done(exchange)
        await client.close()


async def test_leaving_an_exchange_cancels_at_the_node() -> None:
    ends: asyncio.Queue[object] = asyncio.Queue()

    async def handler(inbound: Inbound) -> None:
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        ends.put_nowait(await inbound.receive())
        await inbound.send(DONE)

    async with world(handler) as w:
        client, node = InferClient(w.payer), w.nodes[0].node
        async with await client.open(node) as exchange:
            await exchange.send(infer(b""))
            assert isinstance(await exchange.receive(), Accepted)
        assert isinstance(await ends.get(), Cancel)
        assert client.in_flight(node) == 0
        await client.close()


async def test_a_broken_stream_ends_its_exchanges_and_the_next_opens_another() -> None:
    ended: asyncio.Queue[ErrorCode] = asyncio.Queue()

    async def handler(inbound: Inbound) -> None:
        if inbound.first.body != b"hang":  # type: ignore[union-attr]
            return await scripted(inbound)
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        try:
            await inbound.receive()
        except OpenLoraError as error:
            ended.put_nowait(error.code)
            with pytest.raises(OpenLoraError):
                while True:
                    await inbound.tokens(0, 0, (1,), "x")
            raise

    async with world(handler) as w:
        client, node = InferClient(w.payer), w.nodes[0]
        idle = await client.open(node.node)
        exchange = await client.open(node.node)
        await exchange.send(infer(b"hang"))
        assert isinstance(await exchange.receive(), Accepted)
        await w.payer.disconnect(await node.network.peer_id())
        with pytest.raises(OpenLoraError) as error:
            await exchange.receive()
        assert error.value.code is ErrorCode.NODE_LOST
        with pytest.raises(OpenLoraError):
            await exchange.send(PAY)
        assert await ended.get() is ErrorCode.NODE_LOST
        await idle.send(infer(b"2"))  # nothing was under way in it: it goes on with the new stream
        assert token_count(await until_done(idle)) == 2
        await whole(client, node.node, 1)
        assert node.streams == 2
        await client.close()


async def test_an_unknown_node_and_a_closed_client_are_errors() -> None:
    async with world() as w:
        client, node = InferClient(w.payer), w.nodes[0]
        w.registry.nodes.clear()
        with pytest.raises(OpenLoraError) as error:
            await client.open(node.node)
        assert error.value.code is ErrorCode.WRONG_NODE
        await client.close()
        with pytest.raises(OpenLoraError) as error:
            await client.open(node.node)
        assert error.value.code is ErrorCode.NODE_LOST


async def test_many_open_at_once_share_the_attempt_to_connect() -> None:
    async with world() as w:
        client, node = InferClient(w.payer), w.nodes[0]
        first = asyncio.create_task(client.open(node.node))
        others = [asyncio.create_task(client.open(node.node)) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()
        exchanges = await asyncio.gather(*others)
        assert len({exchange.id for exchange in exchanges}) == 20
        await exchanges[0].send(ASK)
        assert isinstance(await exchanges[0].receive(), QuoteReply)
        assert node.streams == 1
        await client.close()


async def test_a_handler_sees_who_asks_and_from_where() -> None:
    seen: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()

    async def handler(inbound: Inbound) -> None:
        seen.put_nowait((inbound.peer.id, inbound.remote_ip))
        await scripted(inbound)

    async with world(handler) as w:
        client = InferClient(w.payer)
        await whole(client, w.nodes[0].node, 1)
        assert await seen.get() == (await w.payer.peer_id(), "127.0.0.1")
        await client.close()
