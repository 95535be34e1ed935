"""One stream that follows one response: sends what happened and happens, takes vouchers and the wish to stop.

A stream that lags or ends holds up nobody but itself; the response goes on as long as its own rules let it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..journal import StoredReceipt
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.messages import Accepted, Cancel, Done, Paused, Pay, Settled
from ..protocol.structs import Voucher
from .ports import InboundLike
from .response import Response, Stop

TakeVoucher = Callable[[Response, bytes], Awaitable[Voucher]]
"""Keeps a packed voucher for a response's ledger; gives its value."""
EXPIRED = "expired"
"""The finish reason of a receipt whose text is gone."""


async def follow(
    inbound: InboundLike, response: Response, take: TakeVoucher, *, orphan_s: float, answer_s: float
) -> None:
    """Follow `response` to its end. Raises its error, NODE_LOST for a lost payer, what is wrong with a pay.

    When nobody follows, the response ends after `orphan_s`. A receipt that is paid for already is still given
    `answer_s` for the payer's closing voucher, which may be on its way: `settled` ends the exchange.
    """
    follower = _Follower(inbound, response, take, answer_s)
    response.follow()
    writer = asyncio.create_task(follower.write(), name=f"writing {response!r}")
    reader = asyncio.create_task(follower.read(), name=f"reading for {response!r}")
    try:
        await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        # The reader ends by an error alone. If both are done, what the writer says is what the payer waits for.
        await (writer if writer.done() else reader)
    finally:
        response.leave(orphan_s)
        for task in (writer, reader):
            task.cancel()
            with suppress(OpenLoraError, asyncio.CancelledError):
                await task


class _Follower:
    """One stream's place in a response."""

    def __init__(self, inbound: InboundLike, response: Response, take: TakeVoucher, answer_s: float) -> None:
        self._inbound = inbound
        self._response = response
        self._take = take
        self._answer_s = answer_s
        self._number = inbound.first.id
        self._sent = 0
        self._tokens = 0
        self._asked = 0
        self._covered = 0
        self._answered = asyncio.Event()

    async def read(self) -> None:
        """Take what the payer says, until it is gone."""
        while True:
            message = await self._inbound.receive()
            if isinstance(message, Cancel):
                self._response.stop(Stop.CANCELLED)
            elif isinstance(message, Pay):
                voucher = await self._take(self._response, message.voucher)
                self._covered = max(self._covered, voucher.cumulative_tokens)
                finished = self._response.finished
                if finished is not None and voucher.reference_digest == finished.stored.digest:
                    self._answered.set()

    async def write(self) -> None:
        """Say what happens, to the last message."""
        response, inbound = self._response, self._inbound
        accepted = False
        while response.finished is None or self._sent < len(response.pieces):
            bell = response.changed.next
            if response.stored is not None:
                await inbound.send(self._done(response.stored, EXPIRED, b""))
                raise OpenLoraError(ErrorCode.RESULT_EXPIRED)
            if response.prompt_tokens is not None and not accepted:
                accepted = True
                await inbound.send(Accepted(id=self._number, prompt_tokens=response.prompt_tokens))
            await self._pass_on()
            if response.error is not None:
                raise response.error
            await self._ask_for_voucher()
            if response.finished is None:
                await bell.wait()
        finished = response.finished
        await inbound.send(self._done(finished.stored, finished.finish_reason, finished.evidence))
        await self._closed()
        covered = max(self._covered, response.covered_tokens)
        await inbound.send(Settled(id=self._number, cumulative_tokens=covered))

    async def _pass_on(self) -> None:
        pieces = self._response.pieces
        while self._sent < len(pieces):
            piece = pieces[self._sent]
            await self._inbound.tokens(piece.choice, piece.start, piece.token_ids, piece.text, piece.logprobs)
            self._sent += 1
            self._tokens += len(piece.token_ids)
            self._response.has_read(self._tokens)

    async def _ask_for_voucher(self) -> None:
        due = self._response.due
        if due is not None and self._response.pauses != self._asked:
            self._asked = self._response.pauses
            compute = due.compute.to_bytes(16, "big")
            await self._inbound.send(Paused(id=self._number, cumulative_tokens=due.tokens, cumulative_compute=compute))

    async def _closed(self) -> None:
        while not self._response.closed:
            bell = self._response.changed.next
            if not self._response.closed:
                await bell.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._answer_s):
                await self._answered.wait()

    def _done(self, stored: StoredReceipt, reason: str, evidence: bytes) -> Done:
        return Done(
            id=self._number,
            receipt=stored.receipt.pack(),
            finish_reason=reason,
            salt=stored.salt,
            evidence=evidence,
        )
