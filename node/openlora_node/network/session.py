"""The asyncio end of a stream that lives in the network's thread: messages in, messages out, bounded both ways.

Reading stops when the owner does not take what came, so the peer is held back by the transport's own window; `send`
waits when the peer does not take what was sent. What queued up meanwhile leaves in one write. The two threads share
queues and byte counts, each written by one of them, and wake each other only when the other may be waiting: a wake-up
costs more than the message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic

import trio

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import StreamProtocol
from .identity import Peer
from .scores import Fault
from .stream import FramedStream, M

WINDOW_BYTES = 4 << 20
"""Decoded and not yet taken, or encoded and not yet sent; a single frame may be larger."""
MESSAGE_OVERHEAD = 256
"""Counted for each message, so that many small ones are bounded too."""
WRITE_BYTES = 1 << 16


class Session(Generic[M]):
    """A stream as the daemon and the gateway see it. Ends by `close`, by the peer, or with the network."""

    def __init__(
        self,
        stream: FramedStream[M],
        loop: asyncio.AbstractEventLoop,
        window: int | None = None,
        charge: Callable[[Fault], object] | None = None,
        remote_ip: str | None = None,
    ) -> None:
        """Made in the network's thread; `run` must be started there. `charge`, there, notes a fault of the peer."""
        self.peer: Peer = stream.peer
        self.remote_ip = remote_ip
        """Where the peer connects from; None through a relay."""
        self.protocol: StreamProtocol[M] = stream.protocol
        self._stream = stream
        self._loop = loop
        self._window = WINDOW_BYTES if window is None else window
        self._charge = charge
        self._token = trio.lowlevel.current_trio_token()
        # asyncio's side
        self._inbox: deque[tuple[M, int]] = deque()  # filled by trio
        self._taken_bytes = 0
        self._put_bytes = 0
        self._nudged = False
        self._sender_waits = False
        self._finished = False
        self._ended = False
        self._error: OpenLoraError | None = None
        self._closing = False
        self._changed = asyncio.Event()
        # trio's side
        self._outbox: deque[bytes] = deque()  # filled by asyncio
        self._arrived_bytes = 0
        self._sent_bytes = 0
        self._told = False
        self._reader_waits = False
        self._finishing = False
        self._fault: OpenLoraError | None = None
        self._wake_reader = trio.Event()
        self._wake_writer = trio.Event()
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"Session({self.protocol.id}, {self.peer.id}, {'ended' if self._ended else 'open'})"

    @property
    def ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self._ended or self._closing

    @property
    def unsent(self) -> int:
        """Bytes that the peer's side of the network has not taken, with MESSAGE_OVERHEAD for each message."""
        return self._put_bytes - self._sent_bytes

    async def receive(self) -> M | None:
        """The next message; None after the last. Raises NODE_LOST when the stream broke, MALFORMED for bad bytes."""
        while not self._inbox:
            if self._error is not None:
                raise self._error
            if self._ended or self._finished:
                return None
            await self._wait()
        message, size = self._inbox.popleft()
        self._taken_bytes += size
        if self._reader_waits:
            self._nudge()
        return message

    async def send(self, message: M) -> None:
        """Queue a message; waits while the peer lags by more than the window. Raises NODE_LOST after the end."""
        frame = self.protocol.encode(message)
        await self.room(self._window)
        self.put(frame)

    async def room(self, most: int) -> None:
        """Wait until at most `most` bytes are unsent, or until the end."""
        while self.unsent > most and not self._ended:
            self._sender_waits = True
            if self.unsent > most:
                await self._wait()

    def put(self, frame: bytes) -> None:
        """Queue an encoded message without waiting: who calls this keeps it bounded. Raises NODE_LOST after the end."""
        if self.ended:
            raise self._error or OpenLoraError(ErrorCode.NODE_LOST, "the stream to the peer has ended")
        self._put_bytes += len(frame) + MESSAGE_OVERHEAD
        self._outbox.append(frame)
        self._nudge()

    async def close(self) -> None:
        """Send what is queued, then end the stream. Safe to repeat."""
        if not self._closing:
            self._closing = True
            self._post(self._finish)
        while not self._ended:
            await self._wait()

    def abort(self) -> None:
        """Throw the stream away at once."""
        self._closing = True
        self._post(self._scope.cancel)

    def charge(self, fault: Fault) -> None:
        """Hold a fault against the peer; enough of them and the host drops it."""
        charge = self._charge
        if charge is not None:
            self._post(lambda: charge(fault))

    async def run(self) -> None:
        """In the network's thread: carry messages until one side ends it. Raises ProtocolError for bad bytes."""
        self._fault = OpenLoraError(ErrorCode.NODE_LOST, "the network stopped")  # stands if this task is cancelled
        try:
            with self._scope:
                self._fault = None
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._read)
                    await self._guarded(self._write)
                    nursery.cancel_scope.cancel()
                await self._stream.close()
            if self._scope.cancelled_caught:
                await self._stream.reset()
        except BaseException:
            self._fault = OpenLoraError(ErrorCode.NODE_LOST, "the network stopped")
            raise
        finally:
            fault = self._fault
            self._tell(lambda: self.end(fault))
        if isinstance(fault, ProtocolError):
            raise fault  # the guard charges the peer for it

    def end(self, error: OpenLoraError | None) -> None:
        """In asyncio: nothing more comes or goes. Also called when the network's thread died. Safe to repeat."""
        self._ended = True
        self._error = self._error or error
        self._changed.set()

    # asyncio's side

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _told_of(self) -> None:
        self._told = False
        self._changed.set()

    def _peer_finished(self) -> None:
        """The peer will send nothing more; what it asked for may still be answered."""
        self._finished = True
        self._changed.set()

    def _nudge(self) -> None:
        """Wake trio's side, once until it looked; after this turn of the loop, as more may be put in it."""
        if not self._nudged:
            self._nudged = True
            self._loop.call_soon(self._post, self._nudged_by)

    def _post(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            self.end(OpenLoraError(ErrorCode.NODE_LOST, "the network stopped"))

    # trio's side

    def _tell(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the daemon's loop is closed: nobody waits any more
            self._scope.cancel()

    def _tell_once(self) -> None:
        """Wake asyncio's side, once until it looked."""
        if not self._told:
            self._told = True
            self._tell(self._told_of)

    def _nudged_by(self) -> None:
        self._nudged = False
        self._wake_reader.set()
        self._wake_writer.set()

    def _finish(self) -> None:
        self._finishing = True
        self._wake_writer.set()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except OpenLoraError as error:
            self._fault = self._fault or error
            self._scope.cancel()

    async def _read(self) -> None:
        while (frame := await self._stream.receive_frame()) is not None:
            message, size = self.protocol.decode(frame), len(frame) + MESSAGE_OVERHEAD
            while self._arrived_bytes - self._taken_bytes > self._window:
                self._wake_reader = trio.Event()
                self._reader_waits = True
                if self._arrived_bytes - self._taken_bytes > self._window:  # else taken before it could know of us
                    await self._wake_reader.wait()
            self._reader_waits = False
            self._arrived_bytes += size
            self._inbox.append((message, size))
            self._tell_once()
        self._tell(self._peer_finished)

    async def _write(self) -> None:
        while True:
            while not self._outbox:
                if self._finishing:
                    return
                self._wake_writer = trio.Event()
                if not self._outbox:  # else put before it could wake us
                    await self._wake_writer.wait()
            frames = [self._outbox.popleft()]
            size = len(frames[0])
            while self._outbox and size < WRITE_BYTES:
                frames.append(self._outbox.popleft())
                size += len(frames[-1])
            await self._stream.send_frames(b"".join(frames))
            self._sent_bytes += size + MESSAGE_OVERHEAD * len(frames)
            if self._sender_waits:
                self._sender_waits = False
                self._tell_once()
