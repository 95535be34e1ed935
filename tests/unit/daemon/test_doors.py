"""The doors: each session its own task and its own failure, a bounded number of them, vouchers question by question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from openlora_node.daemon.doors import Doors, serve_vouchers
from openlora_node.network.identity import Peer
from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from openlora_node.protocol.ids import NodeId
from openlora_node.protocol.messages import INFER, VOUCHER, StreamProtocol


@dataclass
class FakeSession:
    """A session whose messages a test brings. None ends it."""

    protocol: StreamProtocol[Any] = VOUCHER
    inbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    sent: list[Any] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: bool = False
    peer: Peer = field(default_factory=lambda: Peer("peer", None, None))
    remote_ip: str | None = "192.0.2.1"

    async def receive(self) -> Any:
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        self.ended.set()

    def abort(self) -> None:
        self.aborted = True
        self.ended.set()


@dataclass
class FakeNetwork:
    """Hands over the sessions that a test opens."""

    opened: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def accept(self) -> Any:
        return await self.opened.get()


async def ended(session: FakeSession) -> None:
    await asyncio.wait_for(session.ended.wait(), 5)


def raising(error: Exception) -> Callable[[Any], Any]:
    async def handle(_: Any) -> None:
        raise error

    return handle


@pytest.mark.parametrize("error", [OpenLoraError(ErrorCode.NODE_LOST), ValueError("hunter22")])
async def test_a_session_that_fails_ends_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    network, good = FakeNetwork(), asyncio.Event()

    async def fine(_: Any) -> None:
        good.set()

    doors = Doors(network, {VOUCHER.id: raising(error), INFER.id: fine})  # type: ignore[arg-type]
    task = asyncio.create_task(doors.run())
    bad, other = FakeSession(VOUCHER), FakeSession(INFER)
    for session in (bad, other):
        network.opened.put_nowait(session)
    await ended(bad)
    await ended(other)
    assert bad.aborted
    assert good.is_set()
    assert not other.aborted
    assert doors.open == 0
    task.cancel()


async def test_no_more_than_so_many_are_served_at_once_and_all_end_with_the_doors() -> None:
    network = FakeNetwork()

    async def wait(_: Any) -> None:
        await asyncio.Event().wait()

    doors = Doors(network, {VOUCHER.id: wait}, most=2)  # type: ignore[arg-type]
    task = asyncio.create_task(doors.run())
    sessions = [FakeSession() for _ in range(3)]
    for session in sessions:
        network.opened.put_nowait(session)
    await ended(sessions[2])
    assert (sessions[2].aborted, doors.open) == (True, 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(session.aborted for session in sessions)


async def test_one_machine_with_fresh_keys_does_not_take_every_place() -> None:
    network, served = FakeNetwork(), []

    async def wait(session: Any) -> None:
        served.append(session)
        await asyncio.Event().wait()

    doors = Doors(network, {INFER.id: wait})  # type: ignore[arg-type]
    task = asyncio.create_task(doors.run())
    flood = [FakeSession(INFER, peer=Peer(f"key {i // 64}", None, None)) for i in range(1_024)]
    honest = FakeSession(INFER, remote_ip="2001:db8::1")
    relayed = FakeSession(INFER, remote_ip=None)
    node = FakeSession(INFER, peer=Peer("a node next door", None, NodeId(bytes(32))))
    for session in (*flood, honest, relayed, node):
        network.opened.put_nowait(session)
    await asyncio.wait_for(ended(flood[-1]), 5)
    while not network.opened.empty():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(session.aborted for session in (honest, relayed, node))
    assert sum(not session.aborted for session in flood) == 128
    assert doors.open == len(served) == 131
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_leaves_makes_room_for_others_from_there() -> None:
    network = FakeNetwork()

    async def until_told(session: Any) -> None:
        await session.receive()

    doors = Doors(network, {INFER.id: until_told}, per_place=1)  # type: ignore[arg-type]
    task = asyncio.create_task(doors.run())
    first, second, third = (FakeSession(INFER) for _ in range(3))
    for session in (first, second):
        network.opened.put_nowait(session)
    await ended(second)
    assert (first.aborted, second.aborted) == (False, True)
    first.inbox.put_nowait(None)
    await ended(first)
    third.inbox.put_nowait(None)
    network.opened.put_nowait(third)
    await ended(third)
    assert not third.aborted
    task.cancel()


class Accounts:
    """Answers, or refuses what the test says."""

    def __init__(self, error: OpenLoraError | None = None) -> None:
        self.error = error

    async def account(self, _: messages.GetAccount) -> messages.Account:
        if self.error:
            raise self.error
        return messages.Account(ledgers=(), open_receipts=())

    async def voucher(self, message: messages.PutVoucher) -> messages.VoucherReply:
        return messages.VoucherReply(voucher=message.voucher)


async def test_vouchers_are_answered_one_by_one_until_the_stream_ends() -> None:
    session = FakeSession()
    for message in (messages.GetAccount(query=b"q"), messages.PutVoucher(voucher=b"v"), None):
        session.inbox.put_nowait(message)
    await serve_vouchers(session, Accounts())  # type: ignore[arg-type]
    assert session.sent == [messages.Account(ledgers=(), open_receipts=()), messages.VoucherReply(voucher=b"v")]


async def test_a_refusal_is_an_answer_and_the_stream_lives_on() -> None:
    session = FakeSession()
    for message in (messages.GetAccount(query=b"q"), messages.PutVoucher(voucher=b"v"), None):
        session.inbox.put_nowait(message)
    await serve_vouchers(session, Accounts(OpenLoraError(ErrorCode.RATE_LIMITED)))  # type: ignore[arg-type]
    assert [message.code for message in session.sent[:1]] == ["RATE_LIMITED"]
    assert len(session.sent) == 2


async def test_what_is_no_question_ends_the_stream_with_its_code() -> None:
    session = FakeSession()
    session.inbox.put_nowait(messages.VoucherReply(voucher=b"v"))
    with pytest.raises(ProtocolError):
        await serve_vouchers(session, Accounts())  # type: ignore[arg-type]
    assert session.sent[0].code == "MALFORMED"


async def test_a_silent_stream_is_closed() -> None:
    await asyncio.wait_for(serve_vouchers(FakeSession(), Accounts(), idle_s=0.01), 5)  # type: ignore[arg-type]
