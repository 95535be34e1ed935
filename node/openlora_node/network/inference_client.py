"""The payer's side of `/openlora/infer/1`: one long-lived stream a node, opened when needed and again when it broke.

Exchanges share a node's stream by id. What arrives goes to its exchange at once, whoever is slow to read: an exchange
that lets too much pile up is given up alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict, deque
from types import TracebackType
from typing import Protocol, Self

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import (
    INFER,
    AskQuote,
    Cancel,
    ErrorReply,
    Infer,
    InferMessage,
    Pay,
    StreamProtocol,
)
from .identity import Peer
from .inference_order import PayerOrder, Stage
from .scores import Fault
from .session import Session

MAX_OPEN = 256
"""Exchanges open at once with one node."""
MAX_LINKS = 128
"""Nodes with an open stream; the one idle for longest gives way."""
INBOX_BYTES = 4 << 20
"""Received and not taken, of one exchange."""
MESSAGE_OVERHEAD = 256
IDLE_S = 300.0
"""A stream that carries no exchange is closed after so long, before the node does it."""
OPEN_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class InferNetwork(Protocol):
    """What is used of the Network."""

    async def connect_node(self, node: bytes) -> Peer:
        """A connection to a node."""
        ...

    async def open(
        self, peer: str, protocol: StreamProtocol[InferMessage], *, node: bytes | None = None
    ) -> Session[InferMessage]:
        """A session with a connected peer."""
        ...


class Exchange:
    """One quote, one request, or a quote and then the request, with one node. Also an async context manager."""

    def __init__(self, client: InferClient, link: _Link) -> None:
        self.node: bytes = link.node
        self._client = client
        self._link = link
        self._order = PayerOrder()
        self._inbox: deque[tuple[InferMessage, int]] = deque()
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._error: OpenLoraError | None = None
        self._cancelled = False
        self.id: int = link.join(self)

    def __repr__(self) -> str:
        return f"Exchange({self.id}, {self._order.stage.value}, node {self.node.hex()[:8]})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def send(self, message: AskQuote | Infer | Pay | Cancel) -> None:
        """Send a message; its id is replaced by this exchange's. Waits while the node is behind by 4 MiB.

        Raises NODE_LOST, what the node ended this exchange with, or MALFORMED for a message out of order.
        """
        if self._order.stage is Stage.IDLE and self._link.session.ended and self._error_allows_reopening():
            await self._reopen()
        if self._error is not None:
            raise self._error
        self._order.sends(message)
        await self._link.session.send(msgspec.structs.replace(message, id=self.id))

    async def receive(self) -> InferMessage:
        """The node's next message. Raises what the node's `error` says, and NODE_LOST when the stream is gone."""
        while not self._inbox:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        message, size = self._inbox.popleft()
        self._inbox_bytes -= size
        if isinstance(message, ErrorReply):
            self._fail(message.error())
            assert self._error is not None
            raise self._error
        return message

    def cancel(self) -> None:
        """Ask the node to stop; its receipt over what was generated can still be received. Never waits or raises.

        After the receipt it means that no closing voucher follows.
        """
        if not self._cancelled and self._order.stage not in (Stage.IDLE, Stage.OVER):
            self._cancelled = True
            try:
                self._link.session.put(INFER.encode(Cancel(id=self.id)))
            except OpenLoraError:
                return

    async def aclose(self) -> None:
        """Leave: cancel what runs, forget what still comes. Safe to repeat."""
        self.cancel()
        self._link.leave(self)
        self._fail(OpenLoraError(ErrorCode.CANCELLED, "this exchange was closed"))
        self._inbox.clear()

    # the link's side

    def take(self, message: InferMessage) -> None:
        """Keep what the node sent. Raises ProtocolError when it has no place here; the exchange ends with that."""
        size = _size(message) + MESSAGE_OVERHEAD
        try:
            self._order.receives(message)
        except ProtocolError as error:
            self.cancel()
            self._fail(error)
            raise
        if self._inbox_bytes + size > INBOX_BYTES:
            self.cancel()
            self._fail(OpenLoraError(ErrorCode.CANCELLED, "what the node sent was not read: the request was given up"))
            return
        self._inbox.append((message, size))
        self._inbox_bytes += size
        self._arrived.set()

    def fail(self, error: OpenLoraError) -> None:
        """The stream is gone: what arrived before can still be received."""
        self._fail(error)

    @property
    def over(self) -> bool:
        """Whether nothing more belongs to it."""
        return self._error is not None or self._order.stage is Stage.OVER

    def _fail(self, error: OpenLoraError) -> None:
        self._error = self._error or error
        self._arrived.set()

    def _error_allows_reopening(self) -> bool:
        return self._error is None or self._error.code is ErrorCode.NODE_LOST

    async def _reopen(self) -> None:
        """Nothing is under way here and the stream broke: go on with a new one."""
        self._link.leave(self)
        self._link = await self._client._link(self.node)
        self._error = None
        self.id = self._link.join(self)


class _Link:
    """The stream to one node and the exchanges on it."""

    def __init__(self, node: bytes, session: Session[InferMessage], idle_s: float) -> None:
        self.node = node
        self.session = session
        self.exchanges: dict[int, Exchange] = {}
        self._idle_s = idle_s
        self._ids = itertools.count(1)
        self._issued = 0
        self.reader = asyncio.create_task(self._read(), name=f"infer stream to node {node.hex()[:8]}: reading")

    def join(self, exchange: Exchange) -> int:
        """An id for an exchange. Raises BUSY when too many are open."""
        if len(self.exchanges) >= MAX_OPEN:
            raise OpenLoraError(ErrorCode.BUSY, "too many requests are open with this node", retry_after_ms=1000)
        self._issued = next(self._ids)
        self.exchanges[self._issued] = exchange
        return self._issued

    def leave(self, exchange: Exchange) -> None:
        """Forget an exchange; what the node still says to it is dropped."""
        if self.exchanges.get(exchange.id) is exchange:
            del self.exchanges[exchange.id]

    async def close(self) -> None:
        """End the stream, at once if the node does not take what is queued."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.session.close()
        except TimeoutError:
            self.session.abort()
        await self.reader

    async def _read(self) -> None:
        """Hand on what arrives until the stream ends; then every exchange learns of it."""
        fault = lost("the node closed the stream")
        try:
            while True:
                try:
                    async with asyncio.timeout(self._idle_s):
                        message = await self.session.receive()
                except TimeoutError:
                    if not self.exchanges:
                        break
                    continue
                if message is None:
                    break
                if isinstance(message, ErrorReply) and message.id == 0:
                    fault = message.error()
                    break
                self._hand_on(message)
        except OpenLoraError as error:
            fault = lost(error.message)
        except asyncio.CancelledError:
            self.session.abort()
            raise
        finally:
            for exchange in self.exchanges.values():
                exchange.fail(fault)
            self.exchanges.clear()
        if not self.session.ended:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.session.close()
            except TimeoutError:
                self.session.abort()

    def _hand_on(self, message: InferMessage) -> None:
        exchange = self.exchanges.get(message.id)
        if exchange is None:
            if message.id > self._issued:
                self.session.charge(Fault.MALFORMED)
            return
        try:
            exchange.take(message)
        except ProtocolError as error:
            logger.info("node %s: %s", self.node.hex()[:8], error)
            self.session.charge(Fault.MALFORMED)
        if exchange.over:
            self.leave(exchange)


class InferClient:
    """Streams to nodes, one a node, shared by all exchanges with it."""

    def __init__(self, network: InferNetwork, *, idle_s: float = IDLE_S, max_links: int = MAX_LINKS) -> None:
        """Made in asyncio; nothing is connected before `open`."""
        self._network = network
        self._idle_s = idle_s
        self._max_links = max_links
        self._links: OrderedDict[bytes, _Link] = OrderedDict()
        self._opening: dict[bytes, asyncio.Task[_Link]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"InferClient({len(self._links)} nodes)"

    async def open(self, node: bytes) -> Exchange:
        """An exchange with a node, over its stream, which is opened if need be; the network is not used otherwise.

        Raises NODE_LOST, NOT_FOUND, WRONG_NODE or UNSUPPORTED when there is no way to it, BUSY when too much is open.
        """
        return Exchange(self, await self._link(node))

    def in_flight(self, node: bytes) -> int:
        """Exchanges open with a node."""
        link = self._links.get(node)
        return len(link.exchanges) if link else 0

    async def close(self) -> None:
        """End all streams; exchanges end with NODE_LOST. Safe to repeat."""
        self._closed = True
        for opening in self._opening.values():
            opening.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        links = list(self._links.values())
        self._links.clear()
        await asyncio.gather(*(link.close() for link in links))

    async def _link(self, node: bytes) -> _Link:
        if (link := self._usable(node)) is not None:
            return link
        opening = self._opening.get(node)
        if opening is None:
            opening = asyncio.create_task(self._establish(node), name=f"infer stream to node {node.hex()[:8]}: opening")
            self._opening[node] = opening
            opening.add_done_callback(lambda task: self._opened(node, task))
        try:
            return await asyncio.shield(opening)  # others may wait for it too
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if opening.cancelled() and not (own and own.cancelling()):
                raise lost("this client was closed") from None
            raise

    async def _establish(self, node: bytes) -> _Link:
        session = await self._connect(node)
        if self._closed:
            session.abort()
            raise lost("this client was closed")
        link = self._links[node] = _Link(node, session, self._idle_s)
        return link

    def _opened(self, node: bytes, task: asyncio.Task[_Link]) -> None:
        self._opening.pop(node, None)
        if not task.cancelled():
            task.exception()  # those who waited have it

    def _usable(self, node: bytes) -> _Link | None:
        if self._closed:
            raise lost("this client was closed")
        link = self._links.get(node)
        if link is None:
            return None
        if link.session.ended or link.reader.done():
            del self._links[node]
            return None
        self._links.move_to_end(node)
        return link

    async def _connect(self, node: bytes) -> Session[InferMessage]:
        await self._make_room()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                peer = await self._network.connect_node(node)
                try:
                    return await self._network.open(peer.id, INFER, node=node)
                except OpenLoraError as error:
                    if error.code is not ErrorCode.NODE_LOST:
                        raise
                # the connection was dead already, and is dropped now: once more
                peer = await self._network.connect_node(node)
                return await self._network.open(peer.id, INFER, node=node)
        except TimeoutError:
            raise lost("the node did not answer in time") from None

    async def _make_room(self) -> None:
        while len(self._links) >= self._max_links:
            idle = next((node for node, link in self._links.items() if not link.exchanges), None)
            if idle is None:
                raise OpenLoraError(
                    ErrorCode.BUSY, "requests are open with as many nodes as allowed", retry_after_ms=1000
                )
            await self._links.pop(idle).close()


def _size(message: InferMessage) -> int:
    """Roughly what a message takes in memory."""
    text = len(getattr(message, "text", "")) + len(getattr(message, "logprobs", b""))
    return text + len(getattr(message, "evidence", b"")) + 8 * len(getattr(message, "token_ids", ()))


def lost(why: str) -> OpenLoraError:
    """The node or the way to it is gone."""
    return OpenLoraError(ErrorCode.NODE_LOST, why)
