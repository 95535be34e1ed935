"""A scripted engine behind the server's Backend interface: real streams with real bounds, tokens out of a script."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

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
from openlora_engine.streams import EventStream

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


class Run:
    """One request as the scripted engine runs it. `paused` is set while its reader lags, `cancelled` for good."""

    def __init__(self, request: GenerateRequest, script: Script, limit: int) -> None:
        self.request = request
        self.paused, self.cancelled = asyncio.Event(), asyncio.Event()
        self.num_pauses = 0
        self.num_produced = 0
        self.stream = EventStream(
            request.request_id, request.params.n, limit, pause=self._pause, resume=self._resume, cancel=self._cancel
        )
        self._go = asyncio.Event()
        self._go.set()
        self.task = asyncio.create_task(self._produce(script(request)))

    @property
    def live(self) -> bool:
        """Whether the engine still works for it."""
        return not self.stream.ended

    async def _produce(self, script: AsyncIterator[TokenEvent]) -> None:
        async for event in script:
            self.stream.push(event)
            self.num_produced += 1
            await asyncio.sleep(0)
            await self._go.wait()

    def _pause(self, _request_id: str) -> None:
        self.num_pauses += 1
        self._go.clear()
        self.paused.set()

    def _resume(self, _request_id: str) -> None:
        self.paused.clear()
        self._go.set()

    def _cancel(self, _request_id: str) -> None:
        self.task.cancel()
        self.cancelled.set()


class FakeBackend:
    """Serves a base, the adapters `sql` and `law`, and whatever a test puts into `script` and `refusal`."""

    def __init__(self, tokenizer: Any, *, max_model_len: int = 256, limit: int = 8) -> None:
        self.model = ModelCard((BASE, ALIAS), digest_of(BASE), max_model_len, 512, 1_700_000_000)
        self.tokenizer = tokenizer
        self.metrics = EngineMetrics(BASE)
        self.script: Script = numbers
        self.refusal: EngineError | None = None
        self.state = HealthState.OK
        self.runs: list[Run] = []
        self.graces: list[float] = []
        self._began = asyncio.Event()
        self.mixes: list[tuple[Sequence[tuple[str, float]], str, MixOptions]] = []
        self.cards = {name: _card(name) for name in ("law", "sql")}
        self._limit = limit
        self._hurry = asyncio.Event()

    @property
    def requests(self) -> list[GenerateRequest]:
        """Everything that was asked for."""
        return [run.request for run in self.runs]

    def generate(self, request: GenerateRequest) -> EventStream:
        if self.state is HealthState.DRAINING:
            raise EngineError(Code.DRAINING, "this engine is stopping: ask another", retry_after_s=2.5)
        if self.refusal is not None:
            raise self.refusal
        run = Run(request, self.script, self._limit)
        self.runs.append(run)
        self._began.set()
        return run.stream

    async def begun(self, number: int = 1) -> Run:
        """The run of this number, once there is one."""
        while len(self.runs) < number:
            self._began.clear()
            await self._began.wait()
        return self.runs[number - 1]

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
            num_requests_running=sum(run.live for run in self.runs),
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
        self.graces.append(grace_s)
        if grace_s == 0:
            self._hurry.set()
        hurry = asyncio.create_task(self._hurry.wait())
        everything = asyncio.gather(*(run.task for run in self.runs), return_exceptions=True)
        await asyncio.wait({hurry, everything}, timeout=grace_s or None, return_when=asyncio.FIRST_COMPLETED)
        error = EngineError(Code.DRAINING, "this engine stopped: send the request to another")
        for run in self.runs:
            if run.live:
                run.task.cancel()
                run.stream.push(
                    TokenEvent(run.request.request_id, 0, finish_reason=FinishReason.CANCELLED, error=error)
                )
        hurry.cancel()
        await everything


def _card(name: str, path: str = "") -> AdapterCard:
    return AdapterCard(name, digest_of(name + path), 8, 4_096, 1_700_000_001, "host")
