"""One libp2p stream that carries one protocol's messages. Lives in the network's thread.

libp2p raises at the end of a stream, has no timeout on reads and several exceptions for one meaning; here the end is
None, whatever breaks is NODE_LOST, and a peer that starts a frame has to finish it.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar, cast

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.framing import FrameDecoder, encode_varint
from ..protocol.messages import ErrorReply, Message, StreamProtocol
from .identity import Peer

READ_SIZE = 1 << 16
WRITE_SIZE = 65_000
"""With Yamux's header and Noise's tag this fits one Noise message; a full Yamux frame would take a second, tiny one."""
FRAME_TIMEOUT_S = 30.0
"""From a frame's first byte to its last."""
CLOSE_TIMEOUT_S = 1.0

M = TypeVar("M", bound=Message)

BROKEN = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class FramedStream(Generic[M]):
    """Messages in, messages out. One task reads, one task writes."""

    def __init__(self, stream: INetStream, protocol: StreamProtocol[M], peer: Peer) -> None:
        self.peer = peer
        self.protocol = protocol
        self._stream = stream
        self._decoder = FrameDecoder(protocol.max_frame)
        self._frames: deque[bytes] = deque()
        self._undecoded = 0

    def __repr__(self) -> str:
        return f"FramedStream({self.protocol.id}, {self.peer.id})"

    async def receive_frame(self, idle_s: float | None = None) -> bytes | None:
        """The next frame's payload; None at the end of the stream.

        Raises ProtocolError for bytes that break the framing, NODE_LOST when the peer is gone, when nothing came for
        `idle_s` or when a frame took longer than FRAME_TIMEOUT_S.
        """
        deadline = trio.current_time() + idle_s if idle_s is not None else float("inf")
        if self._undecoded:
            deadline = min(deadline, trio.current_time() + FRAME_TIMEOUT_S)
        while not self._frames:
            with trio.CancelScope(deadline=deadline) as scope:
                if not await self._fill():
                    return None
            if scope.cancelled_caught:
                raise OpenLoraError(ErrorCode.NODE_LOST, "the peer sent nothing in time")
            if self._undecoded and not self._frames:
                deadline = min(deadline, trio.current_time() + FRAME_TIMEOUT_S)
        return self._frames.popleft()

    async def receive(self, idle_s: float | None = None) -> M | None:
        """The next message; None at the end of the stream. Raises as `receive_frame`."""
        frame = await self.receive_frame(idle_s)
        return None if frame is None else self.protocol.decode(frame)

    async def ask(self, message: M, timeout_s: float) -> M:
        """Send a request and read its answer. An error from the peer is raised as what it says."""
        await self.send(message)
        answer = await self.receive(timeout_s)
        if answer is None:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the peer closed the stream without an answer")
        if isinstance(answer, ErrorReply):
            raise answer.error()
        return answer

    async def send(self, message: M) -> None:
        """Write a message. Raises ProtocolError for one that a reader would refuse, NODE_LOST when it cannot leave."""
        await self.send_frames(self.protocol.encode(message))

    async def send_frames(self, frames: bytes) -> None:
        """Write encoded frames in one go."""
        try:
            for start in range(0, len(frames), WRITE_SIZE):
                await self._stream.write(frames[start : start + WRITE_SIZE])
        except BROKEN:
            raise _lost() from None

    async def close(self) -> None:
        """End the stream in good order: what was written arrives. Never raises, never waits long."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
            try:
                await self._stream.close()
            except BROKEN:
                await self.reset()

    async def reset(self) -> None:
        """Throw the stream away, both ways. Never raises, never waits long."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
            try:
                await self._stream.reset()
            except BROKEN:
                return

    async def _fill(self) -> bool:
        """Read once; False at the end."""
        try:
            data = await self._stream.read(READ_SIZE)
        except StreamEOF:
            if cast(Yamux, self._stream.muxed_conn).event_shutting_down.is_set():
                raise _lost() from None  # libp2p gives a lost connection out as an orderly end
            self._decoder.finish()
            return False
        except BROKEN:
            raise _lost() from None
        if not data:
            self._decoder.finish()
            return False
        self._undecoded += len(data)
        for frame in self._decoder.feed(data):
            self._undecoded -= len(encode_varint(len(frame))) + len(frame)
            self._frames.append(frame)
        return True


def _lost() -> OpenLoraError:
    return OpenLoraError(ErrorCode.NODE_LOST, "the connection to the peer broke")
