"""The payer's side of an inference stream against a scripted node, without a network."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from openlora_node.network import inference_client
from openlora_node.network.identity import Peer
from openlora_node.network.inference import Exchange, InferClient
from openlora_node.network.scores import Fault
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from openlora_node.protocol.messages import (
    Accepted,
    AskQuote,
    Cancel,
    Done,
    ErrorReply,
    Infer,
    InferMessage,
    Pay,
    QuoteReply,
    Settled,
    Tokens,
)
from support.network_session import FakeSession

NODE = b"\x07" * 32
ASK = AskQuote(id=1, payer=bytes(20), pipeline=b"p")
INFER = Infer(id=1, request=b"r", pipeline=b"p", body=b"{}")
PAY = Pay(id=1, voucher=b"v")


@dataclass
class FakeNetwork:
    """Hands out sessions; `stale` connections fail at the first stream."""

    sessions: list[FakeSession] = field(default_factory=list)
    connects: int = 0
    stale: int = 0
    gate: asyncio.Event | None = None

    async def connect_node(self, node: bytes) -> Peer:
        self.connects += 1
        if self.gate is not None:
            await self.gate.wait()
        return Peer("16Uiu2HAmNode", None, None)

    async def open(self, _peer: str, _protocol: object, *, node: bytes | None = None) -> FakeSession:
        if self.stale:
            self.stale -= 1
            raise OpenLoraError(ErrorCode.NODE_LOST)
        self.sessions.append(FakeSession())
        return self.sessions[-1]


def client(network: FakeNetwork, **options: float) -> InferClient:
    return InferClient(network, **options)  # type: ignore[arg-type]


def accepted(exchange: Exchange) -> Accepted:
    return Accepted(id=exchange.id, prompt_tokens=1)


def tokens(exchange: Exchange, start: int, count: int = 1, text: str = "x") -> Tokens:
    return Tokens(id=exchange.id, start=start, token_ids=tuple(range(count)), text=text)


def done(exchange: Exchange) -> Done:
    return Done(id=exchange.id, receipt=b"r", finish_reason="stop", salt=bytes(32))


async def receive(exchange: Exchange) -> InferMessage:
    async with asyncio.timeout(5):
        return await exchange.receive()


async def started(network: FakeNetwork) -> tuple[InferClient, Exchange, FakeSession]:
    infers = client(network)
    exchange = await infers.open(NODE)
    await exchange.send(INFER)
    session = network.sessions[-1]
    session.say(accepted(exchange))
    assert await receive(exchange) == accepted(exchange)
    return infers, exchange, session


async def test_exchanges_share_a_stream_and_get_what_is_theirs() -> None:
    network = FakeNetwork()
    infers = client(network)
    exchanges = [await infers.open(NODE) for _ in range(5)]
    assert [exchange.id for exchange in exchanges] == [1, 2, 3, 4, 5]
    for exchange in exchanges:
        await exchange.send(ASK)
    (session,) = network.sessions
    assert [message.id for message in session.said] == [1, 2, 3, 4, 5]
    session.say(*(QuoteReply(id=exchange.id, quote=bytes([exchange.id])) for exchange in reversed(exchanges)))
    for exchange in exchanges:
        assert await receive(exchange) == QuoteReply(id=exchange.id, quote=bytes([exchange.id]))
    assert infers.in_flight(NODE) == 5
    for exchange in exchanges:
        await exchange.aclose()
        await exchange.aclose()
    assert infers.in_flight(NODE) == 0
    assert len(session.said) == 5, "nothing is under way: there is nothing to cancel"
    await infers.close()
    assert session.ended


async def test_a_node_error_ends_its_exchange_with_what_it_says() -> None:
    infers, exchange, session = await started(FakeNetwork())
    other = await infers.open(NODE)
    await other.send(ASK)
    session.say(ErrorReply(id=exchange.id, code="BUSY", message="full", retry_after_ms=9, alternatives=(NODE,)))
    session.say(QuoteReply(id=other.id, quote=b"q"))
    for _ in range(2):
        with pytest.raises(OpenLoraError) as error:
            await receive(exchange)
        assert (error.value.code, error.value.retry_after_ms) == (ErrorCode.BUSY, 9)
        assert error.value.alternatives == (NODE,)
    with pytest.raises(OpenLoraError):
        await exchange.send(PAY)
    assert isinstance(await receive(other), QuoteReply)
    session.say(ErrorReply(id=exchange.id, code="NOT_FOUND", message="late"))
    session.say(ErrorReply(id=0, code="DRAINING", message="going"))
    with pytest.raises(OpenLoraError) as error:
        await receive(other)
    assert error.value.code is ErrorCode.DRAINING
    assert not session.charges
    await infers.close()


@pytest.mark.parametrize(
    "wrong",
    [
        accepted,
        lambda e: tokens(e, 2),
        lambda e: QuoteReply(id=e.id, quote=b"q"),
        lambda e: PAY.__class__(id=e.id, voucher=b"v"),
        lambda e: Cancel(id=e.id),
    ],
    ids=["accepted again", "a gap in the tokens", "a quote nobody asked for", "a payer's message", "a cancel"],
)
async def test_what_a_node_sends_out_of_order_ends_the_exchange_and_is_charged(wrong: object) -> None:
    infers, exchange, session = await started(FakeNetwork())
    session.say(tokens(exchange, 0), wrong(exchange))  # type: ignore[operator]
    assert isinstance(await receive(exchange), Tokens)
    with pytest.raises(ProtocolError):
        await receive(exchange)
    assert session.charges == [Fault.MALFORMED]
    assert session.said[-1] == Cancel(id=exchange.id)
    assert infers.in_flight(NODE) == 0
    session.say(tokens(exchange, 1))  # what still comes for it is dropped
    other = await infers.open(NODE)
    await other.send(ASK)
    session.say(QuoteReply(id=other.id, quote=b"q"))
    assert isinstance(await receive(other), QuoteReply)
    assert session.charges == [Fault.MALFORMED]
    session.say(QuoteReply(id=999, quote=b"q"))
    session.say(ErrorReply(id=0, code="BUSY", message=""))
    with pytest.raises(OpenLoraError):
        await receive(other)
    assert session.charges == [Fault.MALFORMED] * 2, "an id that was never given out"


async def test_the_order_of_what_the_payer_sends_is_held_as_well() -> None:
    network = FakeNetwork()
    infers = client(network)
    exchange = await infers.open(NODE)
    for message in (PAY, Cancel(id=1)):
        with pytest.raises(ProtocolError):
            await exchange.send(message)
    await exchange.send(INFER)
    for message in (INFER, ASK, PAY):
        with pytest.raises(ProtocolError):
            await exchange.send(message)  # type: ignore[arg-type]
    (session,) = network.sessions
    session.say(accepted(exchange), tokens(exchange, 0, 3), tokens(exchange, 3), done(exchange))
    for _ in range(4):
        await receive(exchange)
    await exchange.send(PAY)
    session.say(Settled(id=exchange.id, cumulative_tokens=4))
    assert isinstance(await receive(exchange), Settled)
    with pytest.raises(ProtocolError):
        await exchange.send(PAY)
    await infers.close()


async def test_a_repeated_request_may_be_answered_by_its_receipt_alone() -> None:
    network = FakeNetwork()
    infers = client(network)
    exchange = await infers.open(NODE)
    await exchange.send(INFER)
    network.sessions[0].say(done(exchange))
    assert isinstance(await receive(exchange), Done)
    await infers.close()


async def test_an_exchange_that_is_not_read_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client, "INBOX_BYTES", 10_000)
    infers, exchange, session = await started(FakeNetwork())
    other = await infers.open(NODE)
    await other.send(ASK)
    session.say(*(tokens(exchange, place, text=1000 * "x") for place in range(20)))
    session.say(QuoteReply(id=other.id, quote=b"q"))
    assert isinstance(await receive(other), QuoteReply)
    assert session.said[-1] == Cancel(id=exchange.id)
    count = 0
    with pytest.raises(OpenLoraError) as error:
        while True:
            await receive(exchange)
            count += 1
    assert error.value.code is ErrorCode.CANCELLED
    assert 0 < count < 10
    assert not session.charges
    await infers.close()


async def test_when_the_stream_breaks_what_arrived_can_be_read_and_then_it_is_lost() -> None:
    network = FakeNetwork()
    infers, exchange, session = await started(network)
    idle = await infers.open(NODE)
    session.say(tokens(exchange, 0))
    while session._inbox:
        await asyncio.sleep(0)
    session.break_off()
    assert isinstance(await receive(exchange), Tokens)
    with pytest.raises(OpenLoraError) as error:
        await receive(exchange)
    assert error.value.code is ErrorCode.NODE_LOST
    with pytest.raises(OpenLoraError):
        await exchange.send(PAY)
    exchange.cancel()
    await exchange.aclose()
    await idle.send(ASK)
    assert len(network.sessions) == 2
    assert network.sessions[1].said == [ASK.__class__(id=idle.id, payer=bytes(20), pipeline=b"p")]
    await infers.close()


async def test_a_dead_connection_is_tried_once_more_at_once() -> None:
    network = FakeNetwork(stale=1)
    infers = client(network)
    await infers.open(NODE)
    assert network.connects == 2
    await infers.close()
    network = FakeNetwork(stale=2)
    infers = client(network)
    with pytest.raises(OpenLoraError) as error:
        await infers.open(NODE)
    assert error.value.code is ErrorCode.NODE_LOST
    assert network.connects == 2
    await infers.close()


async def test_idle_streams_are_closed_and_the_idlest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    network = FakeNetwork()
    infers = client(network, idle_s=0.02)
    exchange = await infers.open(NODE)
    (session,) = network.sessions
    await asyncio.wait([asyncio.create_task(session.until_ended())], timeout=0.1)
    assert not session.ended, "an exchange is open"
    await exchange.aclose()
    async with asyncio.timeout(5):
        await session.until_ended()
    await infers.close()

    network = FakeNetwork()
    infers = client(network, max_links=2)
    kept = await infers.open(b"\x01" * 32)
    await (await infers.open(b"\x02" * 32)).aclose()
    await infers.open(b"\x03" * 32)
    assert [session.ended for session in network.sessions] == [False, True, False]
    with pytest.raises(OpenLoraError) as error:
        await infers.open(b"\x04" * 32)
    assert error.value.code is ErrorCode.BUSY
    await kept.aclose()
    await infers.open(b"\x04" * 32)
    await infers.close()


async def test_only_so_many_exchanges_are_open_with_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client, "MAX_OPEN", 3)
    infers = client(FakeNetwork())
    first, *_ = [await infers.open(NODE) for _ in range(3)]
    with pytest.raises(OpenLoraError) as error:
        await infers.open(NODE)
    assert error.value.code is ErrorCode.BUSY
    await first.aclose()
    await infers.open(NODE)
    await infers.close()


async def test_closing_ends_what_is_opening_too() -> None:
    network = FakeNetwork(gate=asyncio.Event())
    infers = client(network)
    opening = [asyncio.create_task(infers.open(NODE)) for _ in range(3)]
    while not network.connects:
        await asyncio.sleep(0)
    opening[0].cancel()
    await infers.close()
    results = await asyncio.gather(*opening, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, OpenLoraError) for result in results[1:])
    assert network.connects == 1
    await infers.close()
