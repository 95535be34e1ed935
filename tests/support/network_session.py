"""A session without a network: a test holds the other end, takes what was written when it likes, and sees charges."""

from __future__ import annotations

import asyncio
from collections import deque

from openlora_node.network.identity import Peer
from openlora_node.network.scores import Fault
from openlora_node.network.session import MESSAGE_OVERHEAD
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.messages import INFER, InferMessage


class FakeSession:
    """The methods of Session, with the peer's side beside them."""

    def __init__(self, *, keeps_pace: bool = True, window: int = 1 << 16) -> None:
        """A peer that does not keep pace takes frames only when the test calls `take`."""
        self.peer = Peer("16Uiu2HAmPeer", None, None)
        self.remote_ip: str | None = "203.0.113.9"
        self.protocol = INFER
        self.charges: list[Fault] = []
        self.frames: list[bytes] = []
        self.aborted = False
        self.keeps_pace = keeps_pace
        self.unsent = 0
        """Bytes that the peer has not taken."""
        self._window = window
        self._unsent: deque[bytes] = deque()
        self._inbox: deque[InferMessage] = deque()
        self._finished = False
        self._ended = False
        self._error: OpenLoraError | None = None
        self._changed = asyncio.Condition()
        self._wakes: set[asyncio.Task[None]] = set()

    # what the code under test uses

    @property
    def ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self._ended

    async def receive(self) -> InferMessage | None:
        """The next message."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._inbox or self._finished or self._ended)
        if self._inbox:
            return self._inbox.popleft()
        if self._error is not None:
            raise self._error
        return None

    async def send(self, message: InferMessage) -> None:
        """Queue a message."""
        await self.room(self._window)
        self.put(INFER.encode(message))

    async def room(self, most: int) -> None:
        """Wait for the peer."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.unsent <= most or self._ended)

    def put(self, frame: bytes) -> None:
        """Queue a frame."""
        if self._ended:
            raise self._error or OpenLoraError(ErrorCode.NODE_LOST)
        if self.keeps_pace:
            self.frames.append(frame)
        else:
            self._unsent.append(frame)
            self.unsent += len(frame) + MESSAGE_OVERHEAD
        self._wake()

    async def close(self) -> None:
        """End it."""
        self._ended = True
        self._wake()

    def abort(self) -> None:
        """Throw it away."""
        self.aborted = self._ended = True
        self._wake()

    def charge(self, fault: Fault) -> None:
        """Note a fault."""
        self.charges.append(fault)

    # the test's side

    def say(self, *messages: InferMessage) -> None:
        """Messages from the peer."""
        self._inbox.extend(messages)
        self._wake()

    def finish(self) -> None:
        """The peer closes its side."""
        self._finished = True
        self._wake()

    def break_off(self) -> None:
        """The connection is lost."""
        self._error = OpenLoraError(ErrorCode.NODE_LOST, "the connection to the peer broke")
        self._ended = True
        self._wake()

    def take(self, frames: int = 1 << 30) -> None:
        """The peer takes some of what waits."""
        for _ in range(min(frames, len(self._unsent))):
            self.frames.append(self._unsent.popleft())
            self.unsent -= len(self.frames[-1]) + MESSAGE_OVERHEAD
        self._wake()

    @property
    def said(self) -> list[InferMessage]:
        """What the peer has taken so far."""
        decoder = FrameDecoder(INFER.max_frame)
        return [INFER.decode(payload) for frame in self.frames for payload in decoder.feed(frame)]

    async def heard(self, count: int) -> list[InferMessage]:
        """Wait until the peer has taken so many messages; all of them."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.frames) >= count)
        return self.said

    async def until_ended(self) -> None:
        """Wait for the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended)

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(wake())
        self._wakes.add(task)
        task.add_done_callback(self._wakes.discard)
