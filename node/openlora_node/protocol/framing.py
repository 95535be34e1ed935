"""Frames on a stream: an unsigned varint length (LEB128, as libp2p uses), then that many bytes.

Streams lose message borders, and a peer may announce any length: the cap is checked on the length alone, before a
byte of the frame is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    """Cuts a byte stream into frames. Between feeds it keeps less than one frame; after an error it keeps nothing."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        self._error: ProtocolError | None = None

    def __repr__(self) -> str:
        return f"FrameDecoder({len(self._buffer)} bytes waiting, cap {self._max_size})"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add received bytes; iterate over the frames that they complete, to the end, before the next call.

        However the stream was split, the frames before a bad one come out first. Then, and from then on, raises
        ProtocolError MALFORMED or FRAME_TOO_LARGE. Feed what one read gave (64 KiB or so) at a time.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        return self._frames()

    def _frames(self) -> Iterator[bytes]:
        start = 0
        try:
            while (header := self._length(start)) is not None:
                length, body = header
                if len(self._buffer) - body < length:
                    break
                start = body + length
                yield bytes(self._buffer[body:start])
        except ProtocolError as error:
            self._error = error
            start = len(self._buffer)
            raise
        finally:
            del self._buffer[:start]

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
