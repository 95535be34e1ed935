"""Dial-backs (AutoNAT 1, `/libp2p/autonat/1.0.0`): serves them to others and asks peers for them.

The server dials nothing but the IP that it sees the asker under, so nobody can point it at a third party, and it dials
from a fresh port on a connection of its own: whether a connection exists already proves nothing.
"""

from __future__ import annotations

import logging

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.autonat.pb.autonat_pb2 import Message
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from .buckets import Allowance, Buckets
from .host import Host
from .identity import Peer, parse_peer_id
from .nat_wire import dial_request, dial_response, receive_message, send_message, unpack_addresses
from .reach_addresses import MAX_CLAIMS, dialable
from .reach_policy import Answer, Vote
from .relay_transport import DirectTCP, stream_ip
from .stream import BROKEN

AUTONAT_ID = "/libp2p/autonat/1.0.0"
DIAL_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
MAX_DIALLED = 2
"""Addresses tried for one question."""
MAX_AT_ONCE = 8
PER_PEER = Allowance(rate=1 / 20, burst=5.0)
PER_IP = Allowance(rate=0.5, burst=40.0)
IN_ALL = Allowance(rate=4.0, burst=80.0)

logger = logging.getLogger(__name__)


class DialBack:
    """Both sides of AutoNAT on a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._peers: Buckets[str] = Buckets(PER_PEER)
        self._ips: Buckets[str] = Buckets(PER_IP)
        self._all: Buckets[None] = Buckets(IN_ALL)
        self._running = 0
        host.handle(AUTONAT_ID, self.answer)

    async def ask(self, peer: str, addresses: tuple[str, ...], observed: str) -> Vote:
        """Have a connected peer dial `addresses`. `observed`: the own IP as this peer sees it. Raises nothing."""
        ip = self._host.connections.ip_of(peer) or ""
        stream: INetStream | None = None
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                stream = await self._host.inner.new_stream(parse_peer_id(peer), [TProtocol(AUTONAT_ID)])
                own = self._host.inner.get_id().to_bytes()
                await send_message(stream, dial_request(own, addresses[:MAX_CLAIMS]))
                reply = (await receive_message(stream, Message, ANSWER_TIMEOUT_S)).dialResponse
        except (OpenLoraError, trio.TooSlowError, *BROKEN) as error:
            return Vote(peer, ip, observed, Answer.REFUSED, reason=type(error).__name__)
        finally:
            if stream is not None:
                await self._host.discard(stream)
        reached = next(iter(unpack_addresses([reply.addr])), "") if reply.addr else ""
        if reply.status == Message.OK and reached in addresses:
            return Vote(peer, ip, observed, Answer.REACHED, reached)
        answer = Answer.FAILED if reply.status == Message.E_DIAL_ERROR else Answer.REFUSED
        text = "".join(c for c in reply.statusText[:80] if c.isprintable())
        return Vote(peer, ip, observed, answer, reason=text)

    async def answer(self, stream: INetStream, peer: Peer) -> None:
        """Serve one question."""
        request = await receive_message(stream, Message)
        if request.type != Message.DIAL or request.dial.peer.id != parse_peer_id(peer.id).to_bytes():
            await send_message(stream, dial_response(Message.E_BAD_REQUEST, text="ask for a dial to yourself"))
            raise ProtocolError(ErrorCode.MALFORMED, "no dial request of the asker's own")
        ip = stream_ip(stream)
        claimed = unpack_addresses(list(request.dial.peer.addrs))
        targets = dialable(claimed, ip, MAX_DIALLED) if ip is not None else ()
        if ip is None or not targets:
            status, text = Message.E_DIAL_REFUSED, "none of the addresses has the IP that you come from"
            await send_message(stream, dial_response(status, text=text))
        elif not self._allows(peer.id, ip):
            await send_message(stream, dial_response(Message.E_DIAL_REFUSED, text="asked too often"))
        else:
            self._running += 1
            try:
                reached = await self._first(peer.id, targets)
            finally:
                self._running -= 1
            status = Message.OK if reached else Message.E_DIAL_ERROR
            await send_message(stream, dial_response(status, reached, "" if reached else "no address answered as you"))

    def _allows(self, peer: str, ip: str) -> bool:
        now = trio.current_time()
        return (
            self._running < MAX_AT_ONCE
            and self._peers.take(peer, now)
            and self._ips.take(ip, now)
            and self._all.take(None, now)
        )

    async def _first(self, peer: str, targets: tuple[str, ...]) -> str:
        for address in targets:
            if await self._reaches(peer, address):
                return address
        return ""

    async def _reaches(self, peer: str, address: str) -> bool:
        """Dial, let the other side prove its key, hang up."""
        target = Multiaddr(address)
        if not await self._host.may_dial(target):
            return False
        with trio.move_on_after(DIAL_TIMEOUT_S):
            try:
                raw = await DirectTCP().dial(target)
            except (BaseLibp2pError, OSError) as error:
                logger.debug("dial-back to %s: %s", address, type(error).__name__)
                return False
            try:
                await self._host.prove(raw, parse_peer_id(peer))
            except Exception as error:  # noqa: BLE001 - a handshake with whoever listens there
                logger.debug("dial-back to %s: %s", address, type(error).__name__)
            else:
                return True
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await raw.close()
        return False
