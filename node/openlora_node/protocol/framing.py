"""Frames on a stream: an unsigned varint length (LEB128, as libp2p uses), then that many bytes.

Streams lose message borders, and a peer may announce any length: the cap is checked on the length alone, before a
byte of the frame is kept.
"""

from __future__ import annotations

from .errors import ErrorCode, ProtocolError

MAX_VARINT_BYTES = 4
"""A frame length has at most 28 bits; every protocol's cap is far below."""


def encode_varint(value: int) -> bytes:
    """The shortest LEB128 form of 0 ≤ value < 2^28."""
    if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE)
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_frame(payload: bytes, max_size: int) -> bytes:
    """Length and payload. Raises FRAME_TOO_LARGE beyond the protocol's cap, MALFORMED for an empty payload."""
    if not payload:
        raise ProtocolError(ErrorCode.MALFORMED, "a frame is not empty")
    if len(payload) > max_size:
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a frame here is at most {max_size} bytes")
    return encode_varint(len(payload)) + payload


class FrameDecoder:
    """Cuts a byte stream into frames. Keeps at most one incomplete frame, never more than `max_size` bytes of it."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    def __repr__(self) -> str:
        return f"FrameDecoder({len(self._buffer)} bytes waiting, cap {self._max_size})"

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; return the frames that they complete.

        Raises ProtocolError MALFORMED or FRAME_TOO_LARGE; the stream is then of no more use.
        """
        self._buffer += data
        frames, start = [], 0
        while (header := self._length(start)) is not None:
            length, body = header
            if len(self._buffer) - body < length:
                break
            start = body + length
            frames.append(bytes(self._buffer[body:start]))
        del self._buffer[:start]
        return frames

    def finish(self) -> None:
        """Call at the end of the stream. Raises MALFORMED when it ends inside a frame."""
        if self._buffer:
            raise ProtocolError(ErrorCode.MALFORMED, "the stream ends inside a frame")

    def _length(self, start: int) -> tuple[int, int] | None:
        """Length of the frame at `start` and where its body begins; None while the varint is incomplete."""
        value = 0
        for place, byte in enumerate(self._buffer[start : start + MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if value == 0 or (place and byte == 0):
                    raise ProtocolError(ErrorCode.MALFORMED, "a frame length is a positive varint in its shortest form")
                if value > self._max_size:
                    raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a frame here is at most {self._max_size} bytes")
                return value, start + place + 1
        if len(self._buffer) - start >= MAX_VARINT_BYTES:
            raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, "a frame length has at most 4 bytes")
        return None
