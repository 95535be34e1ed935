"""The daemon's only way to an engine: what it serves, prompts counted, generation, adapters by artifact id."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from .channel import Channel, Stream
from .chunks import chunks_of
from .dialect import Dialect
from .events import EventReader
from .failures import broken, failure
from .gauges import gauge
from .meter import TokenMeter
from .native import Native
from .values import Chunk, EngineBody, EngineInfo, EngineLoad, Mix, artifact_of, engine_name
from .vllm import Vllm

INFO_TTL_S = 30.0
"""An engine that another hand restarts may become another; its own connection tells sooner."""
HEALTH_S = 5.0
MAX_ADAPTERS = 50_000
"""Names given to the engine; beyond it the least recently used is unloaded. The engine itself takes 100,000."""
TENANT_HEADER, ID_HEADER = "X-OpenLoRA-Tenant", "X-Request-Id"
_DIALECTS: Mapping[str, Callable[[], Dialect]] = {"native": Native, "vllm": Vllm}
_ROUTES = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_TEMPLATE_FIELDS = ("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class EngineState(StrEnum):
    """What the engine says of itself."""

    OK = "ok"
    DRAINING = "draining"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class EngineReport:
    """The engine's state, and a sentence for the operator when it is not OK."""

    state: EngineState
    message: str = ""


class _Health(msgspec.Struct):
    status: EngineState = EngineState.FAILED
    message: str = ""


class EngineClient:
    """One engine. Use it as a context manager, in one event loop.

    Methods raise OpenLoraError and nothing else: ENGINE_UNAVAILABLE where nobody answers or the engine drains, BUSY
    with a time to wait, MALFORMED, PROMPT_TOO_LONG, UNSUPPORTED and ADAPTER_NOT_FOUND for what was asked,
    ENGINE_FAILED where a response breaks off.
    """

    def __init__(
        self,
        channel: Channel,
        backend: Literal["native", "vllm"] = "native",
        *,
        max_adapters: int = MAX_ADAPTERS,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._channel = channel
        self._dialect = _DIALECTS[backend]()
        self._max_adapters = max_adapters
        self._monotonic, self._clock = monotonic, clock
        self._meter = TokenMeter()
        self._info: tuple[float, EngineInfo] | None = None
        self._folders: OrderedDict[bytes, Path] = OrderedDict()
        """What was loaded, least recently used first: an engine that started anew is told again from here."""
        self._loading: dict[bytes, asyncio.Task[None]] = {}
        self._health = ServiceHealth("engine", Level.INITIALIZING, since=int(clock()))

    async def __aenter__(self) -> Self:
        self._channel.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await self._channel.close()

    # What it is.

    async def info(self) -> EngineInfo:
        """What the engine serves; asked again after a while, and after it was not to be reached."""
        now = self._monotonic()
        if self._info is None or now - self._info[0] > INFO_TTL_S:
            try:
                version = _object(await self._channel.get("/version"))
                models = _object(await self._channel.get("/v1/models"))
            except OpenLoraError:
                self._info = None
                raise
            self._info = now, self._dialect.info(version, models)
        return self._info[1]

    async def health(self) -> ServiceHealth:
        """Whether the engine serves. Raises nothing."""
        report = await self.report()
        level = Level.UP if report.state is EngineState.OK else Level.DOWN
        reason = report.message if level is Level.DOWN else ""
        if (level, reason) != (self._health.level, self._health.reason):
            self._health = ServiceHealth("engine", level, reason, int(self._clock()))
        return self._health

    async def report(self) -> EngineReport:
        """What the engine says of itself. Raises nothing."""
        try:
            status, answer = await self._channel.try_get("/health", within_s=HEALTH_S)
        except OpenLoraError:
            self._info = None
            return EngineReport(EngineState.UNREACHABLE, "the engine does not answer: it is starting, or gone")
        if status == 200:
            return EngineReport(EngineState.OK)
        try:
            told = msgspec.json.decode(answer, type=_Health)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            told = _Health()
        reasons = {
            EngineState.DRAINING: "the engine is stopping",
            EngineState.FAILED: "the engine has failed: restart it",
        }
        return EngineReport(told.status, told.message or reasons.get(told.status, "the engine is not ready"))

    async def load(self) -> EngineLoad:
        """Sequences running and waiting in the engine, and its speed as seen from here (tokens a second)."""
        text = (await self._channel.get("/metrics")).decode("utf-8", "replace")
        running, waiting = gauge(text, "num_requests_running"), gauge(text, "num_requests_waiting")
        return EngineLoad(running, waiting, self._meter.rate(self._monotonic()))

    # Requests.

    async def count(self, body: EngineBody, mix: Mix) -> int:
        """Prompt tokens as the engine will count them: all prompts together, each once whatever its choices.

        The tokenizer is the base's: `mix` changes nothing, but one that this engine does not serve is refused here.
        """
        model = (await self.info()).model
        self._dialect.body(body, mix, model, None)
        if body.kind == "chat":
            return await self._fitting(await self._tokens({"model": model, **_chosen(body.raw, _TEMPLATE_FIELDS)}))
        specials = _chosen(body.raw, ("add_special_tokens",))
        total = 0
        for prompt in _prompts(body.raw["prompt"]):
            if isinstance(prompt, str):
                found = await self._tokens({"model": model, "prompt": prompt, **specials})
            else:
                found = len(prompt)
            total += await self._fitting(found)
        return total

    async def _fitting(self, tokens: int) -> int:
        """The tokens of one prompt, where the context holds them."""
        longest = (await self.info()).max_model_len
        if tokens > longest:
            raise OpenLoraError(
                ErrorCode.PROMPT_TOO_LONG, f"a prompt has {tokens} tokens; the context holds {longest}: shorten it"
            )
        return tokens

    def generate(
        self, body: EngineBody, mix: Mix, *, max_tokens: int | None, tenant: str, request_id: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """The tokens of all choices as they come; `max_tokens` bounds each choice, None leaves it to the context.

        Entering raises what the engine refuses. The iterator ends after every choice's last chunk, which has a
        `finish_reason`; it raises ENGINE_FAILED where the engine breaks off. Leaving the block early cancels the run.
        A consumer that lags is sent fewer, larger chunks, and pauses no other.
        """
        return self._generate(body, mix, max_tokens, {TENANT_HEADER: tenant, ID_HEADER: request_id})

    @asynccontextmanager
    async def _generate(
        self, body: EngineBody, mix: Mix, max_tokens: int | None, headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        asked = self._dialect.body(body, mix, (await self.info()).model, max_tokens)
        self._meter.begin(self._monotonic())
        try:
            async with (
                self._begun(_ROUTES[body.kind], asked, mix, headers) as stream,
                aclosing(self._chunks(stream, body.choices)) as chunks,
            ):
                yield chunks
        except OpenLoraError as error:
            if error.code in (ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.ENGINE_FAILED):
                self._info = None
            raise
        finally:
            self._meter.end(self._monotonic())

    @asynccontextmanager
    async def _begun(
        self, path: str, asked: Mapping[str, Any], mix: Mix, headers: Mapping[str, str]
    ) -> AsyncIterator[Stream]:
        """The response, begun. An engine that started anew is told of its adapters first, and asked again."""
        async with AsyncExitStack() as stack:
            try:
                begun = await stack.enter_async_context(self._channel.stream(path, asked, headers))
            except OpenLoraError as error:
                if error.code is not ErrorCode.ADAPTER_NOT_FOUND or not await self._told_again(mix):
                    raise
                begun = await stack.enter_async_context(self._channel.stream(path, asked, headers))
            yield begun

    async def _chunks(self, stream: Stream, choices: int) -> AsyncGenerator[Chunk]:
        reader, unfinished = EventReader(), set(range(choices))
        while data := await stream.read():
            for text in reader.feed(data):
                for chunk in chunks_of(text, choices):
                    self._meter.count(len(chunk.token_ids), self._monotonic())
                    if chunk.finish_reason is not None:
                        unfinished.discard(chunk.choice)
                    yield chunk
            if reader.done:
                await stream.finish()
                break
        if not reader.done or unfinished:
            raise broken()

    async def _tokens(self, asked: Mapping[str, Any]) -> int:
        try:
            return int(_object(await self._channel.post("/tokenize", asked))["count"])
        except (KeyError, TypeError, ValueError):
            raise broken("the engine did not count the prompt") from None

    # Adapters.

    async def ensure(self, artifact: bytes, folder: Path) -> None:
        """Have the engine know the adapter in `folder` by its artifact id; once it does, this takes no call.

        `folder` is an absolute path below the engine's adapter folder. Raises UNSUPPORTED for files that the engine
        does not serve.
        """
        if self._folders.get(artifact) == folder:
            self._folders.move_to_end(artifact)
            return
        task = self._loading.get(artifact)
        if task is None:
            task = asyncio.create_task(self._learn(artifact, folder), name=f"load {engine_name(artifact)[:17]}")
            self._loading[artifact] = task
            task.add_done_callback(lambda done: self._loaded_or_not(artifact, done))
        await asyncio.shield(task)  # others wait for it too

    async def _learn(self, artifact: bytes, folder: Path) -> None:
        await self._tell(artifact, folder)
        self._folders[artifact] = folder
        while len(self._folders) > self._max_adapters:
            await self.unload(next(iter(self._folders)))

    def _loaded_or_not(self, artifact: bytes, done: asyncio.Task[None]) -> None:
        del self._loading[artifact]
        if not done.cancelled():
            done.exception()  # whoever waited has it

    async def loaded(self) -> frozenset[bytes]:
        """The artifact ids that the engine serves by name now, whoever loaded them."""
        models = _object(await self._channel.get("/v1/models")).get("data")
        names = [entry.get("id") for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
        found = (artifact_of(name) for name in names if isinstance(name, str))
        return frozenset(artifact for artifact in found if artifact is not None)

    async def unload(self, artifact: bytes) -> None:
        """Have the engine forget an adapter; requests that run on it end as they began. Unknown ones are no error."""
        self._folders.pop(artifact, None)
        status, answer = await self._channel.try_post("/v1/unload_lora_adapter", {"lora_name": engine_name(artifact)})
        if status not in (200, 404):
            raise failure(status, answer)

    async def _tell(self, artifact: bytes, folder: Path) -> None:
        name = engine_name(artifact)
        status, answer = await self._channel.try_post("/v1/load_lora_adapter", self._dialect.load(name, str(folder)))
        if status == 404 and b'"detail"' in answer:
            raise OpenLoraError(
                ErrorCode.UNSUPPORTED,
                "the engine takes no adapters while it runs: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            )
        if status != 200 and not self._dialect.is_loaded(status, answer):
            raise failure(status, answer)

    async def _told_again(self, mix: Mix) -> bool:
        """Load what this mix needs and was loaded before; whether there was anything."""
        known = [(artifact, self._folders[artifact]) for artifact, _ in mix.adapters if artifact in self._folders]
        for artifact, folder in known:
            await self._tell(artifact, folder)
        return bool(known)


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """One entry a prompt: a text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if prompt and isinstance(prompt[0], int) else prompt


def _chosen(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _object(answer: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise broken("the engine's answer does not parse") from None
