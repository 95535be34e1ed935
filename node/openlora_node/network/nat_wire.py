"""The messages of AutoNAT, circuit relay and DCUtR: protobuf behind a varint length, bounded before it is read.

The classes are those that libp2p generated from the specifications.
"""

from __future__ import annotations

from typing import TypeVar

import trio
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Protobuf
from libp2p.abc import INetStream
from libp2p.host.autonat.pb.autonat_pb2 import Message as AutoNat
from libp2p.network.stream.exceptions import StreamEOF
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from multiaddr.exceptions import Error as MultiaddrError  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.framing import encode_varint
from .stream import BROKEN

MAX_MESSAGE_BYTES = 4096
MESSAGE_TIMEOUT_S = 10.0
MAX_ADDRESSES = 16

P = TypeVar("P", bound=Protobuf)


async def send_message(stream: INetStream, message: Protobuf) -> None:
    """Write one message. Raises NODE_LOST when it cannot leave."""
    body = message.SerializeToString()
    try:
        await stream.write(encode_varint(len(body)) + body)
    except BROKEN:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the stream to the peer broke") from None


async def receive_message(
    stream: INetStream, kind: type[P], timeout_s: float = MESSAGE_TIMEOUT_S, most: int = MAX_MESSAGE_BYTES
) -> P:
    """Read one message and not a byte more: raw data may follow. Raises NODE_LOST, ProtocolError."""
    try:
        with trio.fail_after(timeout_s):
            length = shift = 0
            while True:
                byte = (await _exactly(stream, 1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if length > most or shift > 21:
                    raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"at most {most} bytes here")
                if byte < 0x80:
                    break
            body = await _exactly(stream, length)
    except trio.TooSlowError:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the peer did not answer in time") from None
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ProtocolError(ErrorCode.MALFORMED, f"not a {kind.__name__} message") from None
    return message


def dial_request(peer: bytes, addresses: tuple[str, ...]) -> AutoNat:
    """AutoNAT: please dial these. `peer` is the asker's own peer id, `addresses` go without it."""
    message = AutoNat(type=AutoNat.DIAL)
    message.dial.peer.id = peer
    message.dial.peer.addrs.extend(pack_addresses(addresses))
    return message


def dial_response(status: AutoNat.ResponseStatus.ValueType, address: str = "", text: str = "") -> AutoNat:
    """AutoNAT: what came of it."""
    message = AutoNat(type=AutoNat.DIAL_RESPONSE)
    message.dialResponse.status = status  # set, so written even where it is zero: others read a missing one as none
    if text:
        message.dialResponse.statusText = text
    if address:
        message.dialResponse.addr = Multiaddr(address).to_bytes()
    return message


def pack_addresses(addresses: tuple[str, ...]) -> list[bytes]:
    """Multiaddrs as bytes; what does not parse is left out."""
    packed = []
    for address in addresses[:MAX_ADDRESSES]:
        try:
            packed.append(Multiaddr(address).to_bytes())
        except (MultiaddrError, ValueError):
            continue
    return packed


def unpack_addresses(packed: list[bytes]) -> tuple[str, ...]:
    """Bytes from a stranger as text; what does not parse is left out."""
    found = []
    for data in packed[:MAX_ADDRESSES]:
        try:
            found.append(str(Multiaddr(data)))
        except Exception:  # noqa: BLE001, S112 - whatever a stranger's bytes make the codecs raise
            continue
    return tuple(found)


async def _exactly(stream: INetStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            part = await stream.read(count - len(data))
        except StreamEOF:
            part = b""
        except BROKEN:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the stream to the peer broke") from None
        if not part:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the peer closed the stream without an answer")
        data += part
    return data
