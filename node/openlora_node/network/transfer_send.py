"""The sending side of /openlora/artifact/1: manifests and chunks out of the store, to those who may have them.

One session is served by one task. What a peer may take is bounded by sessions, by a quota of bytes, and, for all peers
together, by the upload rate; a peer that takes nothing for a while loses its session. Strangers from one place share
its sessions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from ..artifacts import Piece
from ..protocol.chunks import CHUNK_SIZE, chunk_count
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.manifest import AnyManifest
from ..protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from .buckets import Allowance, Buckets
from .guests import Guests
from .identity import Peer
from .scores import Fault
from .session import Session
from .transfer_pace import Pace

logger = logging.getLogger(__name__)


PEER_QUOTA = Allowance(rate=(1 << 30) / 60, burst=64 << 30)
QUESTIONS = Allowance(rate=500.0, burst=2_000.0)
FILES_A_QUESTION = 16
"""A manifest is written anew for each answer: one of many files counts as many questions."""


@dataclass(frozen=True)
class SenderOptions:
    """Limits of what is sent. Bytes, and bytes or seconds as named."""

    upload_rate: int = 16 << 20
    """Bytes a second, to all peers together."""
    peer_quota: Allowance = PEER_QUOTA
    """Bytes that one peer may take: so many at once, so many a second in the long run."""
    questions: Allowance = QUESTIONS
    """Questions of one peer."""
    peer_sessions: int = 4
    place_sessions: int = 8
    """Of all strangers from one place (`guests.py`)."""
    sessions: int = 32
    """Of all peers; an eighth is kept for registered nodes."""
    idle_s: float = 60.0
    """A session in which nothing is asked for so long ends."""
    stall_s: float = 30.0
    """A peer that takes nothing of an answer for so long is cut off."""


class Store(Protocol):
    """What the sender needs of the artifact store."""

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """The manifest of a complete artifact."""
        ...

    def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
        """Chunks with their proofs."""
        ...


MaySend = Callable[[bytes, Peer], Awaitable[bool]]
"""Whether the artifact's access policy lets this peer hold it (scope `host` on chain). May raise CHAIN_FAILED."""


class Sender:
    """Answers artifact sessions. Made and used in asyncio."""

    def __init__(
        self,
        store: Store,
        may_send: MaySend,
        options: SenderOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._may_send = may_send
        self._options = options or SenderOptions()
        self._clock = clock
        self._pace = Pace(self._options.upload_rate)
        self._quota: Buckets[str] = Buckets(self._options.peer_quota)
        self._questions: Buckets[str] = Buckets(self._options.questions)
        self._open: Counter[str] = Counter()
        self._guests = Guests(self._options.sessions, self._options.place_sessions)
        self.sent_bytes = 0
        """Bytes of chunks handed to the network so far."""

    async def serve(self, session: Session[ArtifactMessage]) -> None:
        """Answer one session to its end, whatever the peer does. Raises nothing but cancellation."""
        peer = session.peer.id
        try:
            if not self._enter(session):
                await self._refuse(session)
                return
            try:
                await self._answer_all(session)
            finally:
                self._leave(session)
        except OpenLoraError as error:
            logger.debug("artifact session of %s ended: %s", peer, error)
        except TimeoutError:
            session.charge(Fault.STALLED)
        except Exception:
            logger.exception("an artifact session failed")
        finally:
            session.abort()

    def _enter(self, session: Session[ArtifactMessage]) -> bool:
        """Count one more session; False where there is no room for it."""
        peer = session.peer
        if self._open[peer.id] >= self._options.peer_sessions or self._open.total() >= self._options.sessions:
            return False
        if peer.node is None and not self._guests.enter(session.remote_ip):
            return False
        self._open[peer.id] += 1
        return True

    def _leave(self, session: Session[ArtifactMessage]) -> None:
        peer = session.peer
        if peer.node is None:
            self._guests.leave(session.remote_ip)
        self._open[peer.id] -= 1
        if not self._open[peer.id]:
            del self._open[peer.id]

    async def _refuse(self, session: Session[ArtifactMessage]) -> None:
        busy = OpenLoraError(ErrorCode.RATE_LIMITED, "too many artifact sessions are open", retry_after_ms=2000)
        async with asyncio.timeout(self._options.stall_s):
            await session.send(ErrorReply.of(busy))
            await session.close()

    async def _answer_all(self, session: Session[ArtifactMessage]) -> None:
        while True:
            try:
                async with asyncio.timeout(self._options.idle_s):
                    message = await session.receive()
            except TimeoutError:
                message = None  # nothing was asked: no fault of anybody's
            if message is None:
                async with asyncio.timeout(self._options.stall_s):
                    await session.close()
                return
            try:
                await self._answer(session, message)
            except OpenLoraError as error:
                if error.code is ErrorCode.NODE_LOST:
                    raise
                if error.code is ErrorCode.STORAGE_FAILED:
                    logger.exception("an artifact could not be sent")
                    error = OpenLoraError(ErrorCode.NOT_FOUND)
                async with asyncio.timeout(self._options.stall_s):
                    await session.send(ErrorReply.of(error))
                    if isinstance(error, ProtocolError):
                        session.charge(Fault.MALFORMED)
                        await session.close()
                        return

    async def _answer(self, session: Session[ArtifactMessage], message: ArtifactMessage) -> None:
        _charge(self._questions, self._options.questions, session.peer.id, self._clock(), 1)
        match message:
            case GetManifest(artifact=artifact):
                manifest = await self._allowed(artifact, session.peer)
                cost = len(manifest.files) // FILES_A_QUESTION
                _charge(self._questions, self._options.questions, session.peer.id, self._clock(), cost)
                await self._send(session, ManifestReply(data=manifest.encode()))
            case GetChunks():
                await self._send_chunks(session, message)
            case _:
                raise ProtocolError(ErrorCode.MALFORMED, "only manifests and chunks can be asked for")

    async def _allowed(self, artifact: bytes, peer: Peer) -> AnyManifest:
        """The manifest, if it is here and the peer may have what it names. Raises NOT_FOUND, ACCESS_DENIED."""
        manifest = self._store.manifest(artifact)
        if manifest is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND)
        if not await self._may_send(artifact, peer):
            raise OpenLoraError(ErrorCode.ACCESS_DENIED, "the artifact's owner does not let this peer hold it")
        return manifest

    async def _send_chunks(self, session: Session[ArtifactMessage], asked: GetChunks) -> None:
        manifest = await self._allowed(asked.artifact, session.peer)
        files = manifest.files
        if asked.file >= len(files) or asked.first + asked.count > chunk_count(files[asked.file].size):
            raise ProtocolError(ErrorCode.MALFORMED, "the artifact has no chunks of that place")
        size = min(asked.count * CHUNK_SIZE, files[asked.file].size)
        _charge(self._quota, self._options.peer_quota, session.peer.id, self._clock(), size)
        async with aclosing(self._store.reader(asked.artifact, asked.file, asked.first, asked.count)) as pieces:
            async for piece in pieces:
                await self._pace.take(len(piece.data))
                chunk = Chunk(file=asked.file, index=piece.index, data=piece.data, proof=piece.proof)
                await self._send(session, chunk)
                self.sent_bytes += len(piece.data)

    async def _send(self, session: Session[ArtifactMessage], message: ArtifactMessage) -> None:
        async with asyncio.timeout(self._options.stall_s):
            await session.send(message)


def _charge(buckets: Buckets[str], allowance: Allowance, peer: str, now: float, cost: float) -> None:
    """Take from a peer's bucket. Raises RATE_LIMITED saying when there will be enough."""
    if not buckets.take(peer, now, cost):
        wait_ms = int(1000 * (cost - buckets.level(peer, now)) / allowance.rate) + 1
        raise OpenLoraError(ErrorCode.RATE_LIMITED, "this peer's quota is used up", retry_after_ms=wait_ms)
