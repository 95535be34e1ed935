"""A scripted engine behind the server's Backend interface: real streams with real bounds, tokens out of a script."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from openlora_engine.errors import Code, EngineError
from openlora_engine.metrics import EngineMetrics, EngineStats
from openlora_engine.request import (
    ChosenLogprob,
    FinishReason,
    GenerateRequest,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from openlora_engine.server.backend import AdapterCard, Health, HealthState, MixOptions, ModelCard

Script = Callable[[GenerateRequest], AsyncIterator[TokenEvent]]

BASE = "tiny-base"
ALIAS = "org/tiny-base"
TIMINGS = Timings(0.25, 0.125, "host", 0.5, 1.5, 3, 1)


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def numbered(request: GenerateRequest, index: int, step: int) -> TokenEvent:
    """Token `step` of a choice: its id is 300 + step, its text says choice and step."""
    params = request.params
    token_id = 300 + step
    logprobs: tuple[ChosenLogprob, ...] = ()
    if params.logprobs is not None:
        top = tuple(TokenLogprob(65 + rank, -0.5 - rank) for rank in range(params.logprobs))
        logprobs = (ChosenLogprob(TokenLogprob(token_id, -0.5), top),)
    last = step == params.max_tokens - 1
    return TokenEvent(
        request.request_id,
        index,
        (token_id,),
        f" {index}.{step}",
        logprobs,
        finish_reason=FinishReason.LENGTH if last else None,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=step + 1 if last else 0,
        timings=TIMINGS if last else None,
    )


async def numbers(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
    """`max_tokens` numbered tokens for each choice, step by step."""
    params = request.params
    if params.max_tokens == 0:
        for index in range(params.n):
            yield TokenEvent(request.request_id, index, finish_reason=FinishReason.LENGTH, timings=TIMINGS)
    for step in range(params.max_tokens):
        for index in range(params.n):
            yield numbered(request, index, step)


def texts(*parts: str, reason: FinishReason = FinishReason.STOP) -> Script:
    """One choice that says `parts`, a token each."""

    async def script(request: GenerateRequest) -> AsyncIterator[TokenEvent]:
        for step, text in enumerate(parts):
            last = step == len(parts) - 1
            yield TokenEvent(
                request.request_id,
                0,
                (300 + step,),
                text,
                finish_reason=reason if last else None,
                num_output_tokens=len(parts) if last else 0,
            )

    return script


class FakeStream:
    """A bounded buffer between a script and its reader. `paused` is set while the script waits for room."""

    def __init__(self, request: GenerateRequest, script: Script, capacity: int) -> None:
        self.request = request
        self.paused = asyncio.Event()
        self.closed = asyncio.Event()
        self.num_produced = 0
        self._capacity = capacity
        self._events: deque[TokenEvent] = deque()
        self._ready, self._room = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._task = asyncio.create_task(self._produce(script(request)))

    @property
    def live(self) -> bool:
        """Whether the script still runs or waits."""
        return not self._task.done()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._events:
            if self._ended or self.closed.is_set():
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self.take(1)[0]

    def take(self, limit: int | None = None) -> Sequence[TokenEvent]:
        taken = [self._events.popleft() for _ in range(len(self._events) if limit is None else limit)]
        if len(self._events) <= self._capacity // 2:
            self._room.set()
        return taken

    async def aclose(self) -> None:
        self._task.cancel()
        self.closed.set()
        self._ready.set()

    def cancel(self, error: EngineError) -> None:
        """End as a drain does: the last event of every choice carries the error."""
        self._task.cancel()
        for index in range(self.request.params.n):
            self._events.append(
                TokenEvent(self.request.request_id, index, finish_reason=FinishReason.CANCELLED, error=error)
            )
        self._ended = True
        self._ready.set()

    async def _produce(self, script: AsyncIterator[TokenEvent]) -> None:
        async for event in script:
            while len(self._events) >= self._capacity:
                self._room.clear()
                self.paused.set()
                await self._room.wait()
                self.paused.clear()
            self._events.append(event)
            self.num_produced += 1
            self._ready.set()
            await asyncio.sleep(0)
        self._ended = True
        self._ready.set()


class FakeBackend:
    """Serves a base, the adapters `sql` and `law`, and whatever a test puts into `script` and `refusal`."""

    def __init__(self, tokenizer: Any, *, max_model_len: int = 256, capacity: int = 8) -> None:
        self.model = ModelCard((BASE, ALIAS), digest_of(BASE), max_model_len, 512, 1_700_000_000)
        self.tokenizer = tokenizer
        self.metrics = EngineMetrics(BASE)
        self.script: Script = numbers
        self.refusal: EngineError | None = None
        self.state = HealthState.OK
        self.streams: list[FakeStream] = []
        self.opened = asyncio.Event()
        self.mixes: list[tuple[Sequence[tuple[str, float]], str, MixOptions]] = []
        self.cards = {name: _card(name) for name in ("law", "sql")}
        self._capacity = capacity
        self._hurry = asyncio.Event()

    @property
    def requests(self) -> list[GenerateRequest]:
        """Everything that was asked for."""
        return [stream.request for stream in self.streams]

    def generate(self, request: GenerateRequest) -> FakeStream:
        if self.state is HealthState.DRAINING:
            raise EngineError(Code.DRAINING, "this engine is stopping: ask another", retry_after_s=2.5)
        if self.refusal is not None:
            raise self.refusal
        stream = FakeStream(request, self.script, self._capacity)
        self.streams.append(stream)
        self.opened.set()
        return stream

    async def resolve(
        self, model: str, adapters: Sequence[tuple[str, float]], method: str, options: MixOptions
    ) -> str | None:
        by_name = {card.name: card.digest for card in self.cards.values()}
        known = {**by_name, **{digest: digest for digest in by_name.values()}}
        if model not in (*self.model.names, self.model.digest):
            if model not in known:
                raise EngineError(Code.MODEL_NOT_FOUND, "no such model: GET /v1/models lists them", param="model")
            return known[model]
        for name, _ in adapters:
            if name not in known:
                raise EngineError(Code.ADAPTER_NOT_FOUND, "no such adapter: load it first", param="adapters")
        if not adapters:
            return None
        if len(adapters) == 1 and adapters[0][1] == 1.0:
            return known[adapters[0][0]]
        if len(adapters) > 4:
            raise EngineError(Code.MIX_INVALID, "at most 4 adapters: raise --max-mix-adapters", param="adapters")
        self.mixes.append((adapters, method, options))
        return digest_of(repr((adapters, method, options)))

    async def load_adapter(self, name: str, path: str, in_place: bool) -> AdapterCard:
        if name in self.cards and not in_place:
            raise EngineError(Code.ADAPTER_NAME_TAKEN, "loaded already: set load_inplace", param="lora_name")
        if path == "broken":
            raise EngineError(Code.ADAPTER_INVALID, "adapter_model.safetensors ends early: copy it again")
        self.cards[name] = _card(name, path)
        return self.cards[name]

    async def unload_adapter(self, name: str) -> None:
        if self.cards.pop(name, None) is None:
            raise EngineError(Code.ADAPTER_NOT_FOUND, "no such adapter: GET /v1/models lists them", param="lora_name")

    async def pin_adapter(self, name: str, pinned: bool) -> None:
        card = self.cards.get(name)
        if card is None:
            raise EngineError(Code.ADAPTER_NOT_FOUND, "no such adapter: GET /v1/models lists them", param="lora_name")
        self.cards[name] = AdapterCard(
            card.name, card.digest, card.rank, card.nbytes, card.created, card.tier, pinned=pinned
        )

    def adapters(self) -> Sequence[AdapterCard]:
        return [self.cards[name] for name in sorted(self.cards)]

    def health(self) -> Health:
        return Health(self.state, "" if self.state is HealthState.OK else "not taking requests")

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=sum(stream.live for stream in self.streams),
            kv_cache_usage=0.25,
            num_blocks=64,
            block_size=16,
            prefix_cache_queries=100,
            prefix_cache_hits=40,
            slots_used=1,
            slots_total=2,
            adapters_registered=len(self.cards),
            running_adapters=("law", "sql"),
            adapter_bytes={"host": 1_000, "slot": 500},
            host_cache_limit=4_000,
            evictions={("slot", "lru"): 7},
        )

    async def drain(self, grace_s: float) -> None:
        self.state = HealthState.DRAINING
        tasks = [stream._task for stream in self.streams if stream.live]
        if grace_s == 0:
            self._hurry.set()
        hurry = asyncio.create_task(self._hurry.wait())
        everything = asyncio.ensure_future(asyncio.gather(*tasks, return_exceptions=True))
        await asyncio.wait({hurry, everything}, timeout=grace_s or None, return_when=asyncio.FIRST_COMPLETED)
        for stream in self.streams:
            if stream.live:
                stream.cancel(EngineError(Code.DRAINING, "this engine stopped: send the request to another"))
        hurry.cancel()
        await everything


def _card(name: str, path: str = "") -> AdapterCard:
    return AdapterCard(name, digest_of(name + path), 8, 4_096, 1_700_000_001, "host")
