"""Hands what peers open to whoever serves it: one task a session, each failure its own.

The number of sessions is bounded, of strangers from one place and in all; room is kept for registered nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

from ..network.guests import Guests
from ..network.session import Session
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import (
    Account,
    ErrorReply,
    GetAccount,
    GetProof,
    Proof,
    PutVoucher,
    VoucherMessage,
    VoucherReply,
)

MAX_SESSIONS = 1_024
BUSY_MS = 1_000
VOUCHER_IDLE_S = 60.0

logger = logging.getLogger(__name__)

SessionHandler = Callable[[Session[Any]], Awaitable[None]]


class Accepts(Protocol):
    """The network, as far as the doors need it."""

    async def accept(self) -> Session[Any]:
        """The next session that a peer opened."""
        ...


class Accounts(Protocol):
    """Serving, as far as `/openlora/voucher/1` needs it."""

    async def account(self, message: GetAccount) -> Account:
        """A payer's ledgers and open receipts."""
        ...

    async def voucher(self, message: PutVoucher) -> VoucherReply:
        """Keep a voucher."""
        ...

    async def proof(self, message: GetProof) -> Proof:
        """The proof of a payer's receipt."""
        ...


class Doors:
    """Takes sessions from the network. `run` is a task; it ends its sessions when it is cancelled."""

    def __init__(
        self, network: Accepts, handlers: Mapping[str, SessionHandler], most: int = MAX_SESSIONS, per_place: int = 0
    ) -> None:
        """`handlers` by protocol id. `per_place`: sessions of strangers from one place; 0 for an eighth of `most`."""
        self._network = network
        self._handlers = handlers
        self._most = most
        self._guests = Guests(most, per_place)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """Sessions being served."""
        return len(self._tasks)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                session = await self._network.accept()
                stranger = session.peer.node is None
                if len(self._tasks) >= self._most or (stranger and not self._guests.enter(session.remote_ip)):
                    session.abort()  # whoever floods gets no answer: one would cost more than the stream
                    continue
                task = asyncio.create_task(self._serve(session), name=f"{session.protocol.id} of {session.peer.id}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                if stranger:
                    task.add_done_callback(partial(self._left, session.remote_ip))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _left(self, ip: str | None, _task: asyncio.Task[None]) -> None:
        self._guests.leave(ip)

    async def _serve(self, session: Session[Any]) -> None:
        try:
            await self._handlers[session.protocol.id](session)
            await session.close()
        except asyncio.CancelledError:
            session.abort()
            raise
        except OpenLoraError as error:
            logger.debug("%s of %s ended: %s", session.protocol.id, session.peer.id, error.code.value)
            session.abort()
        except Exception:
            logger.exception("%s of %s failed", session.protocol.id, session.peer.id)
            session.abort()


async def serve_vouchers(
    session: Session[VoucherMessage], accounts: Accounts, *, idle_s: float = VOUCHER_IDLE_S
) -> None:
    """Serve one payer's `/openlora/voucher/1` stream: question by question, until it ends or falls silent."""
    while True:
        try:
            async with asyncio.timeout(idle_s):
                question = await session.receive()
        except TimeoutError:
            return
        if question is None:
            return
        try:
            await session.send(await _answer(question, accounts))
        except ProtocolError as error:
            await session.send(ErrorReply.of(error))
            raise
        except OpenLoraError as error:
            if error.code is ErrorCode.NODE_LOST:
                raise
            await session.send(ErrorReply.of(error))


async def _answer(question: VoucherMessage, accounts: Accounts) -> VoucherMessage:
    match question:
        case GetAccount():
            return await accounts.account(question)
        case PutVoucher():
            return await accounts.voucher(question)
        case GetProof():
            return await accounts.proof(question)
        case _:
            raise ProtocolError(ErrorCode.MALFORMED, "an answer nobody asked for")
