"""Messages: every type round-trips, unknown fields are skipped, garbage raises ProtocolError and nothing else."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, PeerError, ProtocolError
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.messages import ADVERT, ARTIFACT, INFER, PROTOCOLS, VOUCHER, Message, StreamProtocol


def constrained(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a message field, read from its type and bounds."""
    info = msgspec.inspect.type_info(annotation)
    return from_info(info)


def from_info(info: Any) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.IntType():
            return st.integers(info.ge, info.le)
        case msgspec.inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=min(info.max_length, 64))
        case msgspec.inspect.StrType():
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(info.max_length, 20))
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.VarTupleType():
            return st.lists(from_info(info.item_type), min_size=info.min_length or 0, max_size=3).map(tuple)
        case msgspec.inspect.StructType():
            return st.builds(info.cls, **{field.name: from_info(field.type) for field in info.fields})
    raise AssertionError(info)


@given(data=st.data())
@pytest.mark.parametrize(
    ("protocol", "message"), [(protocol, message) for protocol in PROTOCOLS for message in protocol.messages]
)
def test_every_message_round_trips(protocol: StreamProtocol[Any], message: type[Message], data: st.DataObject) -> None:
    value = data.draw(constrained(message))
    (payload,) = FrameDecoder(protocol.max_frame).feed(protocol.encode(value))
    assert protocol.decode(payload) == value


@given(extra=st.recursive(st.none() | st.integers(-5, 5) | st.binary(max_size=3), lambda x: st.lists(x, max_size=3)))
def test_unknown_fields_are_skipped(extra: Any) -> None:
    payload = msgspec.msgpack.encode({"t": "cancel", "id": 7, "later": extra})
    assert INFER.decode(payload) == messages.Cancel(id=7)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.id)
@given(payload=st.binary(max_size=400))
def test_random_payloads_raise_only_protocol_error(protocol: StreamProtocol[Any], payload: bytes) -> None:
    try:
        protocol.decode(payload)
    except ProtocolError as error:
        assert error.code in (ErrorCode.MALFORMED, ErrorCode.FRAME_TOO_LARGE)


def corpus() -> list[tuple[StreamProtocol[Any], bytes]]:
    infer = messages.Infer(id=1, request=b"r" * 285, pipeline=b"p" * 80, body=b'{"a":1}', voucher=b"v" * 200)
    tokens = messages.Tokens(id=1, start=3, token_ids=(1, 2, 3), text="abc")
    chunk = messages.Chunk(file=0, index=2, data=b"x" * 100, proof=(b"p" * 32,) * 3)
    account = messages.Account(
        ledgers=(messages.Ledger(signer=b"s" * 20, pipeline=b"p", tokens=1, compute_micro_wei=b"w" * 20),),
        open_receipts=(b"r",),
    )
    adverts = messages.Adverts(adverts=(b"a" * 400, b"b" * 400), more=True)
    done = messages.Done(id=1, receipt=b"r" * 557, finish_reason="stop", salt=b"s" * 32, evidence=b"e" * 300)
    proof = messages.Proof(salt=b"s" * 32, evidence=b"e" * 300, epoch=1, closed=True, path=(b"p" * 32,) * 3)
    pairs = [
        (INFER, infer), (INFER, tokens), (INFER, done), (ARTIFACT, chunk), (VOUCHER, account), (VOUCHER, proof),
        (ADVERT, adverts),
    ]  # fmt: skip
    return [(protocol, protocol.encode(message)) for protocol, message in pairs]


def mutate(source: random.Random, frame: bytes) -> bytes:
    """Flip, cut, repeat, insert or splice a few times."""
    data = bytearray(frame)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(data) + 1)
        match source.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << source.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = source.randbytes(source.randint(1, 16))
            case 3:
                data[place:place] = bytes((source.choice((0xDD, 0xDF, 0xC6, 0xDB, 0xC9)),)) + b"\xff" * 4
            case 4:
                data[place:place] = bytes((source.choice((0x91, 0x81)),)) * source.randint(1, 3000)
            case _:
                del data[place : place + source.randint(1, 40)]
    return bytes(data)


def test_ten_thousand_mutations_raise_only_protocol_error() -> None:
    source, outcomes = random.Random(20_260_101), {"decoded": 0, "refused": 0, "waiting": 0}
    frames = corpus()
    for round_ in range(10_000):
        protocol, frame = frames[round_ % len(frames)]
        try:
            payloads = list(FrameDecoder(protocol.max_frame).feed(mutate(source, frame)))
            decoded = [protocol.decode(payload) for payload in payloads]
            outcomes["decoded" if decoded else "waiting"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == 10_000
    assert min(outcomes.values()) > 100, outcomes


@settings(max_examples=20)
@given(opener=st.sampled_from([b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x82\xa1a\x01\xa1b"]))
def test_deep_nesting_is_refused(opener: bytes) -> None:
    for prefix in (b"", b"\x83\xa1t\xa6cancel\xa2id\x01\xa1z"):
        with pytest.raises(ProtocolError):
            INFER.decode(prefix + opener * (200_000 // len(opener)))


@pytest.mark.parametrize("kind", [0xDD, 0xDF, 0xC6, 0xDB, 0xC9])
def test_announced_sizes_allocate_nothing(kind: int) -> None:
    for prefix in (b"", b"\x83\xa1t\xa6tokens\xa2id\x01\xa9token_ids"):
        with pytest.raises(ProtocolError):
            INFER.decode(prefix + bytes((kind,)) + b"\xff\xff\xff\xff")


def test_messages_of_another_protocol_are_refused() -> None:
    payload = msgspec.msgpack.encode(messages.GetManifest(artifact=bytes(32)))
    assert ARTIFACT.decode(payload)
    with pytest.raises(ProtocolError):
        INFER.decode(payload)


def test_frames_are_capped_per_protocol() -> None:
    for protocol in PROTOCOLS:
        with pytest.raises(ProtocolError) as caught:
            protocol.decode(b"\x00" * (protocol.max_frame + 1))
        assert caught.value.code == ErrorCode.FRAME_TOO_LARGE
    with pytest.raises(ProtocolError):
        INFER.encode(messages.Infer(id=1, request=b"", pipeline=b"", body=b"x" * (INFER.max_frame + 1)))


def test_the_largest_body_fits_its_frame() -> None:
    largest = messages.Infer(
        id=2**63 - 1, request=b"r" * 8192, pipeline=b"p" * 8192, body=b"b" * 2**20, voucher=b"v" * 8192
    )
    (payload,) = FrameDecoder(INFER.max_frame).feed(INFER.encode(largest))
    assert INFER.decode(payload) == largest


def largest(info: Any) -> Any:
    """A message field at its bound."""
    match info:
        case msgspec.inspect.IntType():
            return info.le
        case msgspec.inspect.BytesType():
            return b"\xff" * info.max_length
        case msgspec.inspect.StrType():
            return "é" * info.max_length
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.VarTupleType():
            return (largest(info.item_type),) * info.max_length
        case msgspec.inspect.StructType():
            return info.cls(**{field.name: largest(field.type) for field in info.fields})
    raise AssertionError(info)


# Their fields are bounded for themselves; all of them at once do not fit, and are refused when written.
NEVER_ALL_AT_ONCE = {messages.Account}


@pytest.mark.parametrize(
    ("protocol", "message"), [(protocol, message) for protocol in PROTOCOLS for message in protocol.messages]
)
def test_every_message_fits_its_frame_at_all_its_bounds(protocol: StreamProtocol[Any], message: type[Message]) -> None:
    value = largest(msgspec.inspect.type_info(message))
    if message in NEVER_ALL_AT_ONCE:
        with pytest.raises(ProtocolError) as caught:
            protocol.encode(value)
        assert caught.value.code == ErrorCode.FRAME_TOO_LARGE
        return
    (payload,) = FrameDecoder(protocol.max_frame).feed(protocol.encode(value))
    assert protocol.decode(payload) == value


@pytest.mark.parametrize(
    "message",
    [
        messages.Settled(id=1, cumulative_tokens=2**63),
        messages.Settled(id=1, cumulative_tokens=2**64),
        messages.Settled(id=0, cumulative_tokens=1),
        messages.Settled(id=1, cumulative_tokens=-1),
        messages.Tokens(id=1, start=0, token_ids=(1,), text="\ud83d"),
        messages.Tokens(id=1, start=0, token_ids=(), text=""),
        messages.Tokens(id=1, start=0, token_ids=(1,) * 5000, text=""),
        messages.Infer(id=1, request=b"x" * 8193, pipeline=b"", body=b""),
        messages.ErrorReply(code="X" * 65, message=""),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(message: Any) -> None:
    with pytest.raises(ProtocolError):
        INFER.encode(message)


def test_tags_are_distinct_and_ids_carry_a_version() -> None:
    for protocol in PROTOCOLS:
        tags = [message.__struct_config__.tag for message in protocol.messages]
        assert len(set(tags)) == len(tags)
        assert protocol.id.startswith("/openlora/")
        assert protocol.id.rsplit("/", 1)[1].isdigit()
        for message in protocol.messages:
            assert issubclass(message, Message)


def test_errors_cross_the_wire() -> None:
    sent = OpenLoraError(ErrorCode.BUSY, "try in a second", retry_after_ms=1000, alternatives=(b"n" * 32,))
    got = messages.ErrorReply.of(sent, request=9).error()
    assert isinstance(got, PeerError)
    assert (got.code, got.message, got.retry_after_ms) == (sent.code, f"the node answers: {sent.message}", 1000)
    assert got.alternatives == sent.alternatives
    assert messages.ErrorReply(code="BUSY", message="\x1b[2J\u202e").error().message == "the node answers:  [2J "
    later = messages.ErrorReply(code="A_CODE_OF_LATER", message="m").error()
    assert later.code == ErrorCode.INTERNAL


@pytest.mark.parametrize("code", sorted(messages.LOCAL))
def test_what_speaks_of_this_machine_is_no_others_to_say(code: ErrorCode) -> None:
    assert messages.ErrorReply(code=code.value, message="your disk is full").error().code is ErrorCode.INTERNAL
