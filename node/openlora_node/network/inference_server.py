"""The node's side of `/openlora/infer/1`: one stream's requests told apart by id, each handled by a task of its own.

What a payer may send is judged here (ids, order, how much at once); what a request means is the handler's. An error
ends its id and leaves the stream alive. Replies leave in turn, one message a request, and tokens merge while the peer
is behind, so that no request holds up another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import (
    INFER,
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
from .identity import Peer
from .outgoing import Outgoing
from .scores import Fault
from .session import Session

MAX_OPEN = 256
"""Requests open at once on one stream."""
MAX_OPEN_BYTES = 16 << 20
"""Bodies of the requests open on one stream."""
MAX_UNREAD_VOUCHERS = 16
"""Of one request; older ones give way, as vouchers are cumulative."""
MAX_REMEMBERED_IDS = 1024
"""Ended ids, for which a late `cancel` or `pay` is no fault."""
BEHIND_BYTES = 1 << 13
"""Unsent bytes of the stream from which on the peer counts as behind."""
ID_BYTES = 1 << 18
STREAM_BYTES = 4 << 20
"""What may wait for one request, and for all; its sender waits then."""
IDLE_S = 600.0
"""A stream without open requests is closed after so long."""
SILENT_S = 30.0
"""The same for one on which nothing was ever asked."""

logger = logging.getLogger(__name__)

Handler = Callable[["Inbound"], Awaitable[None]]


class Inbound:
    """One request of a payer, as its handler sees it. `send` and `tokens` stamp the id."""

    def __init__(self, stream: _InferStream, first: AskQuote | Infer) -> None:
        self.peer: Peer = stream.session.peer
        self.remote_ip: str | None = stream.session.remote_ip
        self.id: int = first.id
        self.first = first
        self._stream = stream
        self._inbox: deque[Pay | Cancel] = deque()
        self._arrived = asyncio.Event()
        self.input_error: OpenLoraError | None = None
        self._cancelled = False
        self.accepted = False
        """The payer may send vouchers."""
        self.done = False
        """The receipt was sent."""
        self.over = False
        """The last message was sent: the id is free again."""

    def __repr__(self) -> str:
        return f"Inbound({type(self.first).__name__} {self.id} of {self.peer.id})"

    async def receive(self) -> Pay | Cancel:
        """The payer's next voucher, or its wish to stop. Raises NODE_LOST when the payer is gone, MALFORMED when it
        broke the protocol with this id: treat both as a cancel whose receipt nobody reads."""
        while not self._inbox:
            if self.input_error is not None:
                raise self.input_error
            self._arrived.clear()
            await self._arrived.wait()
        return self._inbox.popleft()

    async def send(self, message: InferMessage) -> None:
        """Queue a message; waits while too much of this request or stream waits. Raises NODE_LOST after the end.

        QuoteReply, ErrorReply and the Settled after Done are the last of their id.
        """
        if message.id != self.id:
            message = _stamped(message, self.id)
        await self._stream.send(self, message)

    async def tokens(self, choice: int, start: int, token_ids: Sequence[int], text: str, logprobs: bytes = b"") -> None:
        """Send generated tokens, `start` the place of the first in its choice. They merge while the peer is behind."""
        await self.send(
            Tokens(
                id=self.id, choice=choice, start=start, token_ids=tuple(token_ids), text=text, logprobs=bytes(logprobs)
            )
        )

    # the stream's side

    def pass_on(self, message: Pay | Cancel) -> None:
        """Give the handler a message."""
        if self._cancelled:
            return
        self._cancelled = isinstance(message, Cancel)
        if len(self._inbox) >= MAX_UNREAD_VOUCHERS:
            self._inbox.popleft()
        self._inbox.append(message)
        self._arrived.set()

    def end_input(self, error: OpenLoraError) -> None:
        """No more messages will come."""
        self.input_error = self.input_error or error
        self._arrived.set()


class _InferStream:
    """The requests open on one session, and the queue of what they have to say."""

    def __init__(self, session: Session[InferMessage], handle: Handler, max_open: int, idle_s: float) -> None:
        self.session = session
        self._handle = handle
        self._max_open = max_open
        self._idle_s = idle_s
        self._open: dict[int, Inbound] = {}
        self._open_bytes = 0
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outgoing = Outgoing()
        self._behind = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Serve until the stream ends and every handler returned."""
        name = f"infer stream of {self.session.peer.id}"
        writer = asyncio.create_task(self._catch_up(), name=f"{name}: writing")
        lost = OpenLoraError(ErrorCode.NODE_LOST, "the payer closed its stream")
        try:
            await self._read()
        except OpenLoraError as error:
            lost = error
        except asyncio.CancelledError:
            self._end_input(lost)
            self.session.abort()
            writer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(writer, *self._tasks, return_exceptions=True)
            raise
        self._end_input(lost)
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
            while self._outgoing and not self.session.ended:
                await self._wait_for_room()
            await self.session.close()
        finally:
            for task in (writer, *self._tasks):
                task.cancel()
            await asyncio.gather(writer, *self._tasks, return_exceptions=True)

    async def send(self, inbound: Inbound, message: InferMessage) -> None:
        """Queue a request's message, or write it at once when the peer keeps pace."""
        self._check(inbound)
        while self._outgoing.size_of(inbound.id) > ID_BYTES or self._outgoing.size > STREAM_BYTES:
            await self._wait_for_room()
            self._check(inbound)
        self._outgoing.add(inbound.id, message)
        inbound.accepted |= isinstance(message, Accepted | Tokens | Done)
        inbound.done |= isinstance(message, Done)
        if isinstance(message, QuoteReply | ErrorReply) or (isinstance(message, Settled) and inbound.done):
            inbound.over = True
            self._release(inbound)
        self._pump()

    async def _read(self) -> None:
        wait = min(SILENT_S, self._idle_s)
        while True:
            try:
                async with asyncio.timeout(wait):
                    message = await self.session.receive()
            except TimeoutError:
                if not self._open:
                    return
                continue
            wait = self._idle_s
            if message is None:
                return
            if isinstance(message, ErrorReply) and message.id == 0:
                raise OpenLoraError(ErrorCode.NODE_LOST, "the payer gave the stream up")
            refusal = self._take(message)
            if refusal is not None:
                await self.session.send(ErrorReply.of(refusal, message.id))  # waits when nobody reads refusals

    def _take(self, message: InferMessage) -> OpenLoraError | None:
        """Begin a request or pass a message on; otherwise why not."""
        if isinstance(message, AskQuote | Infer):
            return self._begin(message)
        inbound = self._open.get(message.id)
        if inbound is None:
            return self._too_late(message)
        if isinstance(message, Cancel | ErrorReply):
            inbound.pass_on(Cancel(id=message.id))
        elif isinstance(message, Pay) and inbound.accepted:
            inbound.pass_on(message)
        else:
            return self._breach(inbound, "this message has no place here: see the order of messages in the protocol")
        return None

    def _too_late(self, message: InferMessage) -> OpenLoraError | None:
        """Messages cross on their way, so one that comes just after its request's end is no fault."""
        if message.id not in self._ended or not isinstance(message, Cancel | ErrorReply | Pay):
            self.session.charge(Fault.FLOOD)
            return OpenLoraError(ErrorCode.NOT_FOUND, "no request of this id is open")
        if isinstance(message, Pay):
            return OpenLoraError(ErrorCode.NOT_FOUND, "this request has ended: send the voucher by itself")
        return None

    def _begin(self, message: AskQuote | Infer) -> OpenLoraError | None:
        running = self._open.get(message.id)
        if running is not None:
            return self._breach(running, "an id stands for one open request: choose another")
        size = len(message.body) if isinstance(message, Infer) else 0
        if len(self._open) >= self._max_open or self._open_bytes + size > MAX_OPEN_BYTES:
            return OpenLoraError(
                ErrorCode.BUSY, "too many of your requests are open on this stream", retry_after_ms=1000
            )
        inbound = Inbound(self, message)
        self._open[message.id] = inbound
        self._open_bytes += size
        self._ended.pop(message.id, None)
        task = asyncio.create_task(self._run(inbound), name=f"infer request {message.id} of {self.session.peer.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    def _breach(self, inbound: Inbound, why: str) -> ProtocolError:
        """A message that its id does not allow ends the id, as the error that answers it says."""
        self.session.charge(Fault.MALFORMED)
        error = ProtocolError(ErrorCode.MALFORMED, why)
        self._outgoing.drop(inbound.id)
        inbound.over = True
        inbound.end_input(error)
        self._release(inbound)
        return error

    async def _run(self, inbound: Inbound) -> None:
        error: OpenLoraError | None = None
        try:
            await self._handle(inbound)
            if not (inbound.over or inbound.done):
                error = OpenLoraError(ErrorCode.INTERNAL)
                logger.error("the handler of %r returned without an answer", inbound)
        except OpenLoraError as refusal:
            error = refusal
        except Exception:
            logger.exception("the handler of %r failed", inbound)
            error = OpenLoraError(ErrorCode.INTERNAL)
        finally:
            self._release(inbound)
        if error is not None and not inbound.over and not self.session.ended:
            inbound.over = True
            self._outgoing.add(inbound.id, ErrorReply.of(error, inbound.id))
            self._pump()

    def _release(self, inbound: Inbound) -> None:
        """The id is free; a handler may still be writing its books."""
        if self._open.get(inbound.id) is inbound:
            del self._open[inbound.id]
            self._open_bytes -= len(inbound.first.body) if isinstance(inbound.first, Infer) else 0
            self._ended[inbound.id] = None
            if len(self._ended) > MAX_REMEMBERED_IDS:
                self._ended.popitem(last=False)

    def _end_input(self, error: OpenLoraError) -> None:
        for inbound in self._open.values():
            inbound.end_input(error)
        if self.session.ended:
            self._room.set()

    def _check(self, inbound: Inbound) -> None:
        if inbound.over:
            raise inbound.input_error or OpenLoraError(ErrorCode.NODE_LOST, "this request has ended")
        if self.session.ended:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the payer is gone")

    def _pump(self) -> None:
        """Hand messages to the session while the peer keeps pace; leave the rest to `_catch_up`."""
        try:
            while self.session.unsent <= BEHIND_BYTES and (frame := self._outgoing.pop()) is not None:
                self.session.put(frame)
        except OpenLoraError:
            return  # the reader learns of the end as well
        if self._outgoing:
            self._behind.set()

    async def _catch_up(self) -> None:
        """While the peer is behind: go on as it takes what was sent."""
        while not self.session.ended:
            await self._behind.wait()
            await self.session.room(BEHIND_BYTES)
            self._behind.clear()
            self._pump()
            self._room.set()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await self._room.wait()


async def serve_session(
    session: Session[InferMessage], handle: Handler, *, max_open: int = MAX_OPEN, idle_s: float = IDLE_S
) -> None:
    """Serve one payer's stream until it ends; returns when every handler did. Cancelling cancels the handlers.

    A handler that raises OpenLoraError ends its id with that error; any other exception is logged and sent as INTERNAL.
    """
    assert session.protocol is INFER, "an inference session"
    await _InferStream(session, handle, max_open, idle_s).run()


def _stamped(message: InferMessage, request: int) -> InferMessage:
    return msgspec.structs.replace(message, id=request)
