"""The engine behind the server: one thread steps it, the event loop talks to it. Implements the server's Backend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .adapters.manager import AdapterInfo, AdapterManager
from .assembly import Assembly
from .errors import Code, EngineError
from .metrics import EngineMetrics, EngineStats
from .request import FinishReason, GenerateRequest, TokenEvent
from .sampling.constraints import Grammar, GrammarCompiler
from .sampling.params import Constraint
from .server.backend import AdapterCard, Health, HealthState, MixOptions, ModelCard, Tokenizer
from .streams import EventStream

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
"""Longest sleep without work: wake-ups come by notification, this bounds the cost of one that got lost."""
MAX_FAULTS_IN_A_ROW = 5
"""Steps that raised what no request explains; then the engine stops serving rather than fail everything quietly."""


class EngineService:
    """Runs one engine. Made and used on the event loop's thread; `close` ends the engine's thread."""

    def __init__(self, assembly: Assembly, metrics: EngineMetrics) -> None:
        model, engine = assembly.model, assembly.engine
        self.model = ModelCard(
            (model.name,),
            engine.config.model_digest,
            model.max_model_len,
            model.vocab_size,
            int(time.time()),
            eos_token_ids=tuple(sorted(model.eos_token_ids)),
            device=model.device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            lora_dtype=str(assembly.lora_dtype).removeprefix("torch."),
            quantization=engine.config.quantization,
        )
        self.tokenizer: Tokenizer = assembly.tokenizer
        self.metrics = metrics
        self._engine = engine
        self._grammars = GrammarCompiler(assembly.tokenizer, model.vocab_size, sorted(model.eos_token_ids))
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, EventStream] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._failure = ""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # Requests.

    def generate(self, request: GenerateRequest) -> EventStream:
        """Queue a request; see Backend."""
        if self._failure:
            raise EngineError(Code.ENGINE_FAILED, self._failure)
        if self._draining:
            raise EngineError(Code.DRAINING, "the engine is stopping: ask another", retry_after_s=1.0)
        stream = EventStream(
            request.request_id,
            request.params.n,
            self._engine.config.stream_buffer,
            pause=self._engine.pause,
            resume=self._engine.resume,
            cancel=self._cancel,
        )
        # Before the engine hears of it: its thread may have events at once.
        self._streams[request.request_id] = stream
        self._idle.clear()
        try:
            if request.params.constraint is None:
                self._engine.add(request)
            else:
                self._compile_and_add(request, request.params.constraint)
        except BaseException:
            self._forget(request.request_id)
            raise
        return stream

    def _compile_and_add(self, request: GenerateRequest, constraint: Constraint) -> None:
        """A grammar may take 0.1 s to compile: off the event loop. What fails then comes as the request's event."""
        compiling = self._loop.run_in_executor(self._compilers, self._grammars.compile, constraint)

        def add(compiled: asyncio.Future[Grammar]) -> None:
            if request.request_id not in self._streams:
                return
            try:
                self._engine.add(request, compiled.result())
            except EngineError as error:
                self._dispatch([TokenEvent(request.request_id, 0, finish_reason=FinishReason.ERROR, error=error)])

        compiling.add_done_callback(add)

    def _cancel(self, request_id: str) -> None:
        self._engine.cancel(request_id)
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        if not self._streams:
            self._idle.set()

    # The engine's thread.

    def _run(self) -> None:
        faults = 0
        while not self._stopping:
            try:
                events = self._engine.step()
                faults = 0
            except Exception:
                faults += 1
                log.exception("a step failed")
                events = self._engine.fail_all(EngineError(Code.ENGINE_FAILED, "the step failed: send it again"))
                if faults >= MAX_FAULTS_IN_A_ROW:
                    self._failure = f"{faults} steps in a row failed: restart the engine and read its log"
            if events:
                self._loop.call_soon_threadsafe(self._dispatch, events)
            elif not self._stopping:
                self._engine.wait_for_work(IDLE_WAIT_S)

    def _dispatch(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            stream.push(event)
            if stream.ended:
                self._forget(event.request_id)

    # Adapters.

    @property
    def _adapters(self) -> AdapterManager:
        return self._engine.adapters

    async def resolve(
        self, model: str, adapters: Sequence[tuple[str, float]], method: str, options: MixOptions
    ) -> str | None:
        """What a request runs on; see Backend."""
        if adapters:
            if model not in self.model.names:
                raise _no_model(model)
            return await asyncio.to_thread(
                self._adapters.resolve_mix,
                adapters,
                method,
                density=options.density,
                majority_sign_method=options.majority_sign_method,
                svd_rank=options.svd_rank,
                seed=options.seed,
            )
        if model in self.model.names:
            return None
        try:
            return self._adapters.lookup(model) or await asyncio.to_thread(self._adapters.resolve, model)
        except EngineError as error:
            raise _no_model(model) if error.code is Code.ADAPTER_NOT_FOUND else error from None

    async def load_adapter(self, name: str, path: str, in_place: bool) -> AdapterCard:
        """Register a PEFT folder under a name; see Backend."""
        return _card(await asyncio.to_thread(self._adapters.load, name, path, in_place=in_place))

    async def unload_adapter(self, name: str) -> None:
        """Forget a name; see Backend."""
        self._adapters.unload(name)

    async def pin_adapter(self, name: str, pinned: bool) -> None:
        """Keep an adapter in its slot, or let it go again; see Backend."""
        digest = await asyncio.to_thread(self._adapters.resolve, name)
        self._engine.pin(digest, pinned=pinned)

    def adapters(self) -> Sequence[AdapterCard]:
        """All registered adapters, in the order of their names."""
        return [_card(info) for info in self._adapters.adapters()]

    def health(self) -> Health:
        """Whether requests are served."""
        if self._failure:
            return Health(HealthState.FAILED, self._failure)
        return Health(HealthState.DRAINING if self._draining else HealthState.OK)

    def stats(self) -> EngineStats:
        """Levels and totals now."""
        return self._engine.stats()

    # The end.

    async def drain(self, grace_s: float) -> None:
        """Refuse what is new, wait for what runs, cancel what is left; see Backend."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        error = EngineError(Code.DRAINING, "the engine stopped before the response was complete", retry_after_s=1.0)
        for request_id in list(self._streams):
            self._engine.cancel(request_id)
            self._dispatch([TokenEvent(request_id, 0, finish_reason=FinishReason.CANCELLED, error=error)])

    async def close(self) -> None:
        """End the engine's thread; a step under way is finished."""
        self._stopping = True
        self._engine.wake()
        await asyncio.to_thread(self._thread.join)
        self._compilers.shutdown(cancel_futures=True)
        self._grammars.close()
        self._engine.close()


def _card(info: AdapterInfo) -> AdapterCard:
    return AdapterCard(info.name, info.digest, info.rank, info.nbytes, info.created, info.tier, info.pinned)


def _no_model(name: str) -> EngineError:
    return EngineError(
        Code.MODEL_NOT_FOUND, f"no model or adapter is called {name!r}: GET /v1/models lists them", param="model"
    )
