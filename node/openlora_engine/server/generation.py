"""One response from its first event to its last: streams opened together, read together, closed whatever happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from ..errors import Code, EngineError
from ..request import FinishReason, GenerateRequest, TokenEvent
from .backend import Backend, TokenStream
from .pieces import Piece, Tally, merge
from .recorder import Recorder
from .reply import fault
from .responses import Usage
from .shape import Envelope, Shape
from .sse import SseResponse

log = logging.getLogger(__name__)

Sink = Callable[[int, Sequence[TokenEvent]], Awaitable[None]]
"""Takes events of the prompt with this number."""

_FAILED = (FinishReason.CANCELLED, FinishReason.ERROR)


@dataclass(frozen=True)
class Generation:
    """A response to be made: requests, one a prompt, and the shape of what they give."""

    backend: Backend
    requests: tuple[GenerateRequest, ...]
    envelope: Envelope
    shape: Shape
    arrived: float
    """Reading of time.monotonic() when the request came."""
    include_usage: bool = False
    continuous_usage: bool = False

    async def whole(self) -> Struct:
        """Everything as one body. Raises the first failure of any choice."""
        events: list[list[TokenEvent]] = [[] for _ in self.requests]

        async def keep(prompt: int, seen: Sequence[TokenEvent]) -> None:
            events[prompt].extend(seen)

        await self._run(keep)
        tally, n = self._tally(), self.envelope.n
        pieces = [piece for prompt, seen in enumerate(events) for piece in merge(seen, prompt, n)]
        pieces.sort(key=lambda piece: piece.choice)
        for piece in pieces:
            tally.add(piece)
        return self.shape.whole(pieces, tally.usage)

    async def stream(self, to: SseResponse) -> None:
        """Everything as events. Raises a failure that comes before the first; a later one is the last event.

        What lies ready when the client has room goes out as one event a choice: a slow reader gets fewer, larger ones.
        Raises ConnectionError when the client is gone.
        """
        tally, turn = self._tally(), asyncio.Lock()

        async def send(prompt: int, seen: Sequence[TokenEvent]) -> None:
            async with turn:
                await self._send(merge(seen, prompt, self.envelope.n), tally, to)

        try:
            await self._run(send)
        except ConnectionError:
            raise
        except Exception as error:
            if not to.begun:
                raise
            await self._break_off(error, to)
            return
        if self.include_usage:
            await to.send(self.shape.usage_chunk(tally.usage))
        await to.done()

    async def _send(self, pieces: Sequence[Piece], tally: Tally, to: SseResponse) -> None:
        chunks = []
        for piece in pieces:
            tally.add(piece)
            if not self.envelope.is_silent(piece):
                chunks.append(self.shape.chunk(piece, self._usage_so_far(tally)))
        if chunks:
            await to.send(*chunks)

    async def _break_off(self, error: Exception, to: SseResponse) -> None:
        """Tell of a failure that came when the status line was long gone."""
        if not isinstance(error, EngineError):
            log.error("a fault in the stream of %s", self.envelope.id, exc_info=error)
            error = fault()
        self.backend.metrics.request_failed(error.code.value)
        await to.fail(error)

    def _usage_so_far(self, tally: Tally) -> Usage | UnsetType | None:
        if not self.include_usage:
            return UNSET
        return tally.usage if self.continuous_usage else None

    def _tally(self) -> Tally:
        return Tally([len(request.prompt_token_ids) for request in self.requests], self.envelope.n)

    async def _run(self, sink: Sink) -> None:
        """Read all streams to their end. Raises the first failure; then, as on cancellation, all are closed."""
        async with self._opened() as streams:
            await _together([self._read(prompt, stream, sink) for prompt, stream in enumerate(streams)])

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[list[TokenStream]]:
        streams: list[TokenStream] = []
        try:
            for request in self.requests:
                streams.append(self.backend.generate(request))
            yield streams
        finally:
            for stream in streams:
                await stream.aclose()

    async def _read(self, prompt: int, stream: TokenStream, sink: Sink) -> None:
        request, n = self.requests[prompt], self.envelope.n
        recorder = Recorder(self.backend.metrics, len(request.prompt_token_ids), n, self.arrived)
        running = set(range(n))
        try:
            async for event in stream:
                seen = (event, *stream.take())
                recorder.saw(seen)
                await _deliver(prompt, seen, sink)
                running.difference_update(event.index for event in seen if event.finish_reason is not None)
        finally:
            recorder.close()
        if running:
            raise EngineError(Code.ENGINE_FAILED, "the engine ended the response too early: send the request again")


async def _deliver(prompt: int, seen: Sequence[TokenEvent], sink: Sink) -> None:
    """Hand on what came before a failure, then raise it."""
    failed = next((place for place, event in enumerate(seen) if _failure(event) is not None), len(seen))
    if failed:
        await sink(prompt, seen[:failed])
    if failed < len(seen):
        failure = _failure(seen[failed])
        assert failure is not None
        raise failure


def _failure(event: TokenEvent) -> EngineError | None:
    if event.error is not None:
        return event.error
    if event.finish_reason in _FAILED:
        return EngineError(Code.CANCELLED, "the request was cancelled before it ended")
    return None


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure cancels the others and is raised as it is."""
    if len(work) == 1:
        await work[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
