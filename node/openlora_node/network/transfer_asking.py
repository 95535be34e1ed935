"""Asks one source of an artifact for its share of the work, over as many sessions as its patience and ours allow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import ArtifactId
from ..protocol.manifest import artifact_id
from ..protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from .scores import Fault
from .session import Session
from .transfer_download import Download
from .transfer_patience import FetchOptions, Patience
from .transfer_plan import Claim, claim_size

Open = Callable[[str], Awaitable[Session[ArtifactMessage]]]
"""Opens an artifact session with a peer that is connected, or can be. Raises NODE_LOST, UNSUPPORTED, RATE_LIMITED."""

logger = logging.getLogger(__name__)


class _LiedError(Exception):
    """A source sent what cannot be true, or not what was asked for."""


class Asking:
    """What a fetch asks one peer for."""

    def __init__(self, download: Download, peer: str, open_session: Open, options: FetchOptions) -> None:
        self.peer = peer
        self.refusals: list[OpenLoraError] = []
        """Why sessions ended."""
        self.patience = Patience(options.min_rate, options.slack_s, asyncio.get_running_loop().time())
        self._download = download
        self._open = open_session
        self._options = options

    async def run(self) -> None:
        """Until nothing is missing, or no more is to be had from this peer."""
        failures, wait = 0, self._options.first_wait_s
        while failures < self._options.attempts:
            before = self._download.done
            try:
                if await self._session():
                    return
            except _LiedError as lie:
                logger.info("source %s of %s is dropped: %s", self.peer, self._download.artifact.hex()[:12], lie)
                self.refusals.append(OpenLoraError(ErrorCode.BAD_CHUNK, "a source sent false data"))
                return
            except TimeoutError:
                self.refusals.append(OpenLoraError(ErrorCode.NODE_LOST, "a source sent nothing in time"))
            except OpenLoraError as error:
                self.refusals.append(error)
                if error.code not in (ErrorCode.NODE_LOST, ErrorCode.RATE_LIMITED, ErrorCode.BUSY):
                    return
                wait = max(wait, (error.retry_after_ms or 0) / 1000)
                if wait > self._options.longest_wait_s:
                    return
            except Exception:
                logger.exception("fetching from a source failed")
                self._download.stop(OpenLoraError(ErrorCode.INTERNAL))
                return
            else:
                continue
            if self._download.done > before:
                failures, wait = 0, self._options.first_wait_s
            failures += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, self._options.longest_wait_s)

    async def _session(self) -> bool:
        """One session: True when nothing is missing, False to begin another. Raises what ended it."""
        async with asyncio.timeout(self._options.open_s):
            session = await self._open(self.peer)
        try:
            if self._download.plan is None:
                await self._ask_manifest(session)
            speed: float | None = None
            while not self._download.is_complete:
                assert self._download.plan is not None
                claim = self._download.plan.claim(self.peer, claim_size(speed))
                if claim is None:
                    await self._download.changed.wait()  # nothing to do until another source is lost
                    continue
                began = time.monotonic()
                try:
                    whole = await self._take(session, claim)
                finally:
                    self._download.plan.release(self.peer)
                    self._download.changed.fire()
                if not whole:
                    return False  # nobody needs the rest of that answer: a new session does not have to wait for it
                speed = claim.count / max(1e-6, time.monotonic() - began)
        except _LiedError:
            session.charge(Fault.LIED)
            raise
        finally:
            session.abort()
        return True

    async def _take(self, session: Session[ArtifactMessage], claim: Claim) -> bool:
        """Ask for a range and keep what comes; False when the rest became useless meanwhile."""
        plan = self._download.plan
        assert plan is not None
        asked = GetChunks(artifact=self._download.artifact, file=claim.file, first=claim.first, count=claim.count)
        await session.send(asked)
        for index in range(claim.first, claim.first + claim.count):
            message = await self._receive(session)
            if not isinstance(message, Chunk) or (message.file, message.index) != (claim.file, index):
                raise _LiedError("it sent another chunk than the next")
            if plan.wants(claim.file, index):
                try:
                    await self._download.keep(message)
                except ProtocolError as error:
                    raise _LiedError(error.message) from None
                plan.arrived(self.peer, claim.file, index)
                self.patience.brought(len(message.data), asyncio.get_running_loop().time())
            if index + 1 < claim.first + claim.count and not plan.is_useful(self.peer):
                return False
        return True

    async def _ask_manifest(self, session: Session[ArtifactMessage]) -> None:
        await session.send(GetManifest(artifact=self._download.artifact))
        message = await self._receive(session)
        if not isinstance(message, ManifestReply) or artifact_id(message.data) != ArtifactId(self._download.artifact):
            raise _LiedError("it sent another manifest")
        await self._download.begin(message.data)

    async def _receive(self, session: Session[ArtifactMessage]) -> ArtifactMessage:
        async with asyncio.timeout(self._options.answer_s):
            message = await session.receive()
        if message is None:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the source ended the session")
        if isinstance(message, ErrorReply):
            raise message.error()
        return message
