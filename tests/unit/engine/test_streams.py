"""Event streams: order, bounds, back-pressure in both directions, and what closing does."""

from __future__ import annotations

import asyncio

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.request import FinishReason, TokenEvent
from openlora_engine.streams import EventStream


class Engine:
    """Records what the stream asks for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def stream(self, num_choices: int = 1, limit: int = 4) -> EventStream:
        return EventStream(
            *("r", num_choices, limit),
            pause=lambda request_id: self.calls.append(f"pause {request_id}"),
            resume=lambda request_id: self.calls.append(f"resume {request_id}"),
            cancel=lambda request_id: self.calls.append(f"cancel {request_id}"),
        )


def token(number: int, index: int = 0) -> TokenEvent:
    return TokenEvent("r", index, (number,))


def last(index: int = 0, error: EngineError | None = None) -> TokenEvent:
    reason = FinishReason.ERROR if error else FinishReason.STOP
    return TokenEvent("r", index, finish_reason=reason, error=error)


async def test_events_arrive_in_order_and_the_stream_ends_after_the_last_choice() -> None:
    stream = Engine().stream(num_choices=2, limit=100)
    sent = [token(1), token(2, 1), last(0), token(3, 1), last(1)]
    for event in sent:
        stream.push(event)
    assert [event async for event in stream] == sent
    assert stream.ended


async def test_a_reader_is_woken_when_an_event_comes() -> None:
    stream = Engine().stream()
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    stream.push(token(7))
    assert (await reader).token_ids == (7,)


async def test_a_reader_that_lags_pauses_its_request_once_and_resumes_it_when_half_is_read() -> None:
    engine = Engine()
    stream = engine.stream(limit=4)
    for number in range(6):
        stream.push(token(number))
    assert engine.calls == ["pause r"]
    assert stream.paused
    for _ in range(3):
        await anext(stream)
    assert engine.calls == ["pause r"]
    await anext(stream)
    assert engine.calls == ["pause r", "resume r"]
    assert [event.token_ids for event in stream.take()] == [(4,), (5,)]


async def test_take_resumes_too() -> None:
    engine = Engine()
    stream = engine.stream(limit=2)
    stream.push(token(0))
    stream.push(token(1))
    assert len(stream.take()) == 2
    assert engine.calls == ["pause r", "resume r"]
    assert stream.take() == ()


async def test_the_last_event_does_not_pause() -> None:
    engine = Engine()
    stream = engine.stream(limit=1)
    stream.push(last())
    assert engine.calls == []


async def test_closing_cancels_once_and_ends_a_waiting_reader() -> None:
    engine = Engine()
    stream = engine.stream()
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await reader
    stream.push(token(1))
    assert engine.calls == ["cancel r"]
    assert stream.take() == ()


async def test_closing_after_the_end_cancels_nothing() -> None:
    engine = Engine()
    stream = engine.stream()
    stream.push(last())
    await stream.aclose()
    assert engine.calls == []


async def test_an_error_ends_all_choices() -> None:
    stream = Engine().stream(num_choices=3)
    stream.push(last(1, EngineError(Code.OUT_OF_MEMORY, "no memory")))
    assert [event.index async for event in stream] == [1]
    assert stream.ended


async def test_a_cancelled_reader_leaves_the_stream_usable() -> None:
    stream = Engine().stream()
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    stream.push(token(3))
    assert (await anext(stream)).token_ids == (3,)
