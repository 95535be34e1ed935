"""One stream that follows one response: sends what happened and happens, takes vouchers and the wish to stop.

A stream that lags or ends holds up nobody but itself; the response goes on as long as its own rules let it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from ..journal import StoredReceipt
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.messages import Accepted, Cancel, Done, Paused, Pay, Settled
from .ports import InboundLike
from .response import Response, Stop

TakeVoucher = Callable[[Response, bytes], Awaitable[None]]
"""Keeps a packed voucher for a response's ledger."""
EXPIRED = "expired"
"""The finish reason of a receipt whose text is gone."""


async def follow(inbound: InboundLike, response: Response, take: TakeVoucher, orphan_s: float) -> None:
    """Follow `response` to its end. Raises its error, NODE_LOST for a lost payer, what is wrong with a pay."""
    response.follow()
    writer = asyncio.create_task(_write(inbound, response), name=f"writing {response!r}")
    reader = asyncio.create_task(_read(inbound, response, take), name=f"reading for {response!r}")
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


async def _read(inbound: InboundLike, response: Response, take: TakeVoucher) -> None:
    while True:
        message = await inbound.receive()
        if isinstance(message, Cancel):
            response.stop(Stop.CANCELLED)
        elif isinstance(message, Pay):
            await take(response, message.voucher)


async def _write(inbound: InboundLike, response: Response) -> None:
    number = inbound.first.id
    accepted, sent, tokens, told = False, 0, 0, None
    while True:
        bell = response.changed.next
        if response.stored is not None:
            await _tell_gone(inbound, response.stored)
        if response.prompt_tokens is not None and not accepted:
            accepted = True
            await inbound.send(Accepted(id=number, prompt_tokens=response.prompt_tokens))
        while sent < len(response.pieces):
            piece = response.pieces[sent]
            await inbound.tokens(piece.choice, piece.start, piece.token_ids, piece.text, piece.logprobs)
            sent += 1
            tokens += len(piece.token_ids)
            response.has_read(tokens)
        if response.error is not None:
            raise response.error
        if response.finished is not None and sent == len(response.pieces):
            break
        due = response.due
        if due is not None and due != told:
            await inbound.send(
                Paused(id=number, cumulative_tokens=due.tokens, cumulative_compute=due.compute.to_bytes(16, "big"))
            )
        told = due
        await bell.wait()
    finished = response.finished
    await inbound.send(
        Done(
            id=number,
            receipt=finished.stored.receipt.pack(),
            finish_reason=finished.finish_reason,
            salt=finished.stored.salt,
        )
    )
    while True:
        bell = response.changed.next
        if response.closed:
            break
        await bell.wait()
    await inbound.send(Settled(id=number, cumulative_tokens=response.covered_tokens))


async def _tell_gone(inbound: InboundLike, stored: StoredReceipt) -> NoReturn:
    await inbound.send(
        Done(id=inbound.first.id, receipt=stored.receipt.pack(), finish_reason=EXPIRED, salt=stored.salt)
    )
    raise OpenLoraError(ErrorCode.RESULT_EXPIRED)
