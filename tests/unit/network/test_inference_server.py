"""The node's side of an inference stream against a scripted payer, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from openlora_node.network import inference_server
from openlora_node.network.inference import Inbound, serve_session
from openlora_node.network.scores import Fault
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
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


def ask(request: int) -> AskQuote:
    return AskQuote(id=request, payer=bytes(20), pipeline=b"p")


def infer(request: int, body: bytes = b"1") -> Infer:
    return Infer(id=request, request=b"r", pipeline=b"p", body=body)


def pay(request: int, voucher: bytes = b"v") -> Pay:
    return Pay(id=request, voucher=voucher)


def done(request: int = 1) -> Done:
    return Done(id=request, receipt=b"receipt", finish_reason="stop", salt=bytes(32))


@asynccontextmanager
async def serving(session: FakeSession, handle: Any, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The stream being served for as long as the block lasts."""
    task = asyncio.create_task(serve_session(session, handle, **options))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(10):
            yield task
            session.finish()
            if not task.done():
                await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def echo(inbound: Inbound) -> None:
    """One token for each request, then the receipt and the voucher."""
    if isinstance(inbound.first, AskQuote):
        await inbound.send(QuoteReply(id=999, quote=b"q"))
        return
    await inbound.send(Accepted(id=999, prompt_tokens=1))
    await inbound.tokens(0, 0, [5], "x")
    await inbound.send(done())
    message = await inbound.receive()
    if isinstance(message, Pay):
        await inbound.send(Settled(id=1, cumulative_tokens=1))


def codes(messages: list[InferMessage]) -> list[tuple[int, str]]:
    return [(message.id, message.code) for message in messages if isinstance(message, ErrorReply)]


async def test_a_request_from_beginning_to_end_and_its_id_is_free_again() -> None:
    session = FakeSession()
    async with serving(session, echo):
        for round_ in range(2):
            session.say(ask(7))
            await session.heard(5 * round_ + 1)
            session.say(infer(7))
            await session.heard(5 * round_ + 4)
            session.say(pay(7))
            messages = await session.heard(5 * round_ + 5)
        kinds = [type(message).__name__ for message in messages]
        assert kinds == 2 * ["QuoteReply", "Accepted", "Tokens", "Done", "Settled"]
        assert {message.id for message in messages} == {7}, "whatever id the handler wrote"
        assert not session.charges


async def test_requests_of_one_stream_run_side_by_side() -> None:
    session, meeting = FakeSession(), asyncio.Barrier(20)

    async def handle(inbound: Inbound) -> None:
        await meeting.wait()
        await inbound.send(QuoteReply(id=1, quote=b"q"))

    async with serving(session, handle):
        session.say(*(ask(request) for request in range(1, 21)))
        assert {message.id for message in await session.heard(20)} == set(range(1, 21))


async def test_errors_end_their_id_with_their_code_and_bugs_with_internal(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(inbound: Inbound) -> None:
        if inbound.id == 1:
            raise OpenLoraError(ErrorCode.ESCROW_TOO_LOW, "deposit more", retry_after_ms=5)
        if inbound.id == 2:
            raise RuntimeError("secret text")
        if inbound.id == 4:
            return
        await echo(inbound)

    session = FakeSession()
    async with serving(session, handle):
        session.say(infer(1), infer(2), ask(3), infer(4))
        messages = await session.heard(4)
        assert sorted(codes(messages)) == [(1, "ESCROW_TOO_LOW"), (2, "INTERNAL"), (4, "INTERNAL")]
        assert not any("secret" in str(message) for message in messages)
        assert not session.charges


async def test_an_error_after_the_last_message_is_not_sent() -> None:
    async def handle(inbound: Inbound) -> None:
        await inbound.send(QuoteReply(id=1, quote=b"q"))
        raise OpenLoraError(ErrorCode.STORAGE_FULL)

    session = FakeSession()
    async with serving(session, handle):
        session.say(ask(1), ask(2))
        messages = await session.heard(2)
    assert all(isinstance(message, QuoteReply) for message in messages)
    assert len(session.said) == 2


async def test_unknown_ids_are_refused_and_charged_but_late_messages_are_not() -> None:
    session = FakeSession()
    async with serving(session, echo):
        session.say(pay(5), Cancel(id=6), Accepted(id=7, prompt_tokens=1))
        assert codes(await session.heard(3)) == [(5, "NOT_FOUND"), (6, "NOT_FOUND"), (7, "NOT_FOUND")]
        assert session.charges == [Fault.FLOOD] * 3
        session.say(ask(8))
        await session.heard(4)
        session.say(Cancel(id=8), ErrorReply(id=8, code="CANCELLED", message=""), pay(8))
        assert codes(await session.heard(5))[3:] == [(8, "NOT_FOUND")], "the cancel and the error want no answer"
        assert session.charges == [Fault.FLOOD] * 3


@pytest.mark.parametrize(
    "message",
    [pay(1), infer(1), ask(1), Accepted(id=1, prompt_tokens=1), done(1), Settled(id=1, cumulative_tokens=1)],
    ids=lambda message: type(message).__name__,
)
async def test_a_message_out_of_order_ends_its_id_and_is_charged(message: InferMessage) -> None:
    ends: asyncio.Queue[ErrorCode] = asyncio.Queue()

    async def handle(inbound: Inbound) -> None:
        if inbound.id == 2:
            return await echo(inbound)
        try:
            await inbound.receive()
        except OpenLoraError as error:
            ends.put_nowait(error.code)
            with pytest.raises(OpenLoraError):
                await inbound.send(Accepted(id=1, prompt_tokens=1))
            raise

    session = FakeSession()
    async with serving(session, handle):
        session.say(infer(1))
        session.say(message)
        assert codes(await session.heard(1)) == [(1, "MALFORMED")]
        assert await ends.get() is ErrorCode.MALFORMED
        assert session.charges == [Fault.MALFORMED]
        session.say(ask(2))
        assert isinstance((await session.heard(2))[-1], QuoteReply)


async def test_only_so_many_requests_and_bytes_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_server, "MAX_OPEN_BYTES", 1000)
    go_on = asyncio.Event()

    async def handle(inbound: Inbound) -> None:
        await go_on.wait()
        await inbound.send(QuoteReply(id=1, quote=b"q"))

    session = FakeSession()
    async with serving(session, handle, max_open=3):
        session.say(infer(1, 600 * b"x"), infer(2, 600 * b"x"), ask(3), ask(4), ask(5))
        messages = await session.heard(2)
        assert codes(messages) == [(2, "BUSY"), (5, "BUSY")]
        assert all(message.retry_after_ms for message in messages if isinstance(message, ErrorReply))
        go_on.set()
        await session.heard(5)
        session.say(infer(6, 600 * b"x"))
        assert isinstance((await session.heard(6))[-1], QuoteReply)


async def test_of_unread_vouchers_the_newest_are_kept() -> None:
    read: list[bytes] = []
    go_on = asyncio.Event()

    async def handle(inbound: Inbound) -> None:
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        await go_on.wait()
        while isinstance(message := await inbound.receive(), Pay):
            read.append(message.voucher)
        await inbound.send(done())

    session = FakeSession()
    async with serving(session, handle):
        session.say(infer(1))
        await session.heard(1)
        session.say(*(pay(1, str(number).encode()) for number in range(100)), Cancel(id=1), Cancel(id=1))
        session.say(ask(2))  # read after all of those
        while not session._inbox:
            await asyncio.sleep(0)
        while session._inbox:
            await asyncio.sleep(0)
        go_on.set()
        await session.heard(2)
    assert [int(voucher) for voucher in read] == list(range(100 - len(read), 100))
    assert 0 < len(read) <= inference_server.MAX_UNREAD_VOUCHERS


async def test_tokens_merge_while_the_payer_is_behind_and_the_sender_waits_at_its_bound() -> None:
    sent = 0
    stuck = asyncio.Event()

    async def handle(inbound: Inbound) -> None:
        nonlocal sent
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        for place in range(20_000):
            await inbound.tokens(0, place, [place], "0123456789")
            sent += 1
        await inbound.send(done())

    session = FakeSession(keeps_pace=False)
    async with serving(session, handle):
        session.say(infer(1))
        before = -1
        while before != sent:
            before = sent
            for _ in range(50):
                await asyncio.sleep(0)
        stuck.set()
        assert 1000 < sent < 20_000
        while sum(isinstance(message, Done) for message in session.said) == 0:
            session.take()
            await asyncio.sleep(0)
        tokens = [message for message in session.said if isinstance(message, Tokens)]
        assert [token for message in tokens for token in message.token_ids] == list(range(20_000))
        assert "".join(message.text for message in tokens) == 20_000 * "0123456789"
        assert len(tokens) < 500, "far fewer messages than tokens"
        session.say(pay(1))


async def test_a_talkative_request_holds_up_no_other_on_the_stream() -> None:
    async def handle(inbound: Inbound) -> None:
        if isinstance(inbound.first, AskQuote):
            await echo(inbound)
            return
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        for place in range(100_000):
            await inbound.tokens(0, place, [place], 1000 * "x")

    session = FakeSession(keeps_pace=False)
    async with serving(session, handle) as task:
        session.say(infer(1))
        while session.unsent <= inference_server.BEHIND_BYTES:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        session.say(ask(2))
        taken = 0
        while not any(isinstance(message, QuoteReply) for message in session.said):
            session.take(1)
            taken += 1
            for _ in range(20):
                await asyncio.sleep(0)
        assert taken < 20, "its turn comes after what is on its way and one message of the other"
        session.break_off()
        await task


async def test_refusals_that_nobody_reads_hold_the_reader_back() -> None:
    session = FakeSession(keeps_pace=False)
    async with serving(session, echo):
        session.say(*(pay(number) for number in range(1, 2_000)))
        before = -1
        while before != len(session._inbox):
            before = len(session._inbox)
            for _ in range(50):
                await asyncio.sleep(0)
        assert 0 < before < 2_000
        assert session.unsent < 1 << 17
        session.keeps_pace = True
        session.take()
        while session._inbox:
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["finish", "break_off", "give_up"])
async def test_when_the_payer_goes_its_handlers_learn_of_it_and_are_waited_for(how: str) -> None:
    booked: list[ErrorCode] = []

    async def handle(inbound: Inbound) -> None:
        try:
            await inbound.receive()
        except OpenLoraError as error:
            await asyncio.sleep(0)
            booked.append(error.code)
            raise

    session = FakeSession()
    async with serving(session, handle) as task:
        session.say(infer(1), infer(2))
        while session._inbox:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if how == "give_up":
            session.say(ErrorReply(id=0, code="CANCELLED", message=""))
        else:
            getattr(session, how)()
        await task
        assert booked == [ErrorCode.NODE_LOST] * 2
        assert session.ended


async def test_what_was_asked_before_the_payer_closed_its_side_is_still_answered() -> None:
    go_on = asyncio.Event()

    async def handle(inbound: Inbound) -> None:
        await go_on.wait()
        await inbound.send(QuoteReply(id=1, quote=b"q"))

    session = FakeSession(keeps_pace=False)
    async with serving(session, handle) as task:
        session.say(ask(1), ask(2))
        session.finish()
        while session._inbox:
            await asyncio.sleep(0)
        go_on.set()
        while not task.done():
            session.take()
            await asyncio.sleep(0)
        session.take()
        assert len(session.said) == 2


async def test_a_stream_without_requests_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_server, "SILENT_S", 0.01)
    silent = FakeSession()
    async with serving(silent, echo) as task:
        await silent.until_ended()
        await task
    used, go_on = FakeSession(), asyncio.Event()

    async def handle(inbound: Inbound) -> None:
        await go_on.wait()
        await inbound.send(QuoteReply(id=1, quote=b"q"))

    async with serving(used, handle, idle_s=0.05) as task:
        used.say(ask(1))
        await asyncio.wait([task], timeout=0.3)
        assert not task.done(), "a request is open"
        go_on.set()
        await task
        assert isinstance(used.said[0], QuoteReply)


async def test_cancelling_the_stream_cancels_its_handlers() -> None:
    cancelled = 0

    async def handle(_inbound: Inbound) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(10):
                await asyncio.sleep(0)
            cancelled += 1  # its books are written: the stream is not over before
            raise

    session = FakeSession()
    async with serving(session, handle) as task:
        session.say(infer(1), infer(2))
        while session._inbox:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled == 2
        assert session.aborted
        assert not [each for each in asyncio.all_tasks() if "infer" in each.get_name()]
