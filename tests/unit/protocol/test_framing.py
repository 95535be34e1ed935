"""Frames: any split of any stream gives the same frames; lengths are judged before anything is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.framing import FrameDecoder, encode_frame, encode_varint

CAP = 1000


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), max_size=12), cuts=st.lists(st.integers(0, 4000)))
def test_any_split_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(payload, CAP) for payload in payloads)
    decoder, got, last = FrameDecoder(CAP), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        got += decoder.feed(stream[last:cut])
        last = cut
    decoder.finish()
    assert got == payloads


@given(payload=st.binary(min_size=1, max_size=300), data=st.data())
def test_a_stream_cut_short_says_so(payload: bytes, data: st.DataObject) -> None:
    frame = encode_frame(payload, CAP)
    decoder = FrameDecoder(CAP)
    assert list(decoder.feed(frame[: data.draw(st.integers(1, len(frame) - 1))])) == []
    with pytest.raises(ProtocolError):
        decoder.finish()


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (encode_varint(CAP + 1), ErrorCode.FRAME_TOO_LARGE),
        (encode_varint(2**28 - 1), ErrorCode.FRAME_TOO_LARGE),
        (b"\x80\x80\x80\x80\x04", ErrorCode.FRAME_TOO_LARGE),  # 1 GiB
        (b"\xff" * 10, ErrorCode.FRAME_TOO_LARGE),
        (b"\x00", ErrorCode.MALFORMED),
        (b"\x80\x00", ErrorCode.MALFORMED),
        (b"\x81\x00", ErrorCode.MALFORMED),
        (b"\x80\x80\x00", ErrorCode.MALFORMED),
    ],
)
def test_bad_lengths_are_refused_at_once(start: bytes, code: ErrorCode) -> None:
    for pieces in ([start], [bytes((byte,)) for byte in start]):
        decoder = FrameDecoder(CAP)
        with pytest.raises(ProtocolError) as caught:
            for piece in pieces:
                assert list(decoder.feed(piece)) == []
        assert caught.value.code == code
        with pytest.raises(ProtocolError):
            decoder.feed(b"x" * 10_000)
        assert "(0 bytes waiting" in repr(decoder)


@given(stream=st.binary(max_size=5000))
def test_random_bytes_raise_only_protocol_error_and_keep_little(stream: bytes) -> None:
    decoder = FrameDecoder(CAP)
    try:
        for start in range(0, len(stream), 7):
            list(decoder.feed(stream[start : start + 7]))
            assert int(repr(decoder).split("(")[1].split()[0]) <= CAP + 4
    except ProtocolError:
        return


@given(payloads=st.lists(st.binary(min_size=1, max_size=30), max_size=5), cut=st.integers(0, 200))
def test_frames_before_a_bad_one_arrive_however_the_stream_is_split(payloads: list[bytes], cut: int) -> None:
    stream = b"".join(encode_frame(payload, CAP) for payload in payloads) + b"\x00more"
    decoder, got = FrameDecoder(CAP), []
    with pytest.raises(ProtocolError):
        for piece in (stream[:cut], stream[cut:]):
            for frame in decoder.feed(piece):
                got.append(frame)
    assert got == payloads


def test_encoding_is_bounded() -> None:
    assert encode_frame(b"x" * CAP, CAP)
    for payload in (b"", b"x" * (CAP + 1)):
        with pytest.raises(ProtocolError):
            encode_frame(payload, CAP)
    for value in (-1, 2**28):
        with pytest.raises(ProtocolError):
            encode_varint(value)
