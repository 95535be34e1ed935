"""What the server asks of the engine behind it: one interface and its values. Knows neither HTTP nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

from ..metrics import EngineMetrics, EngineStats
from ..request import GenerateRequest, TokenEvent


@dataclass(frozen=True)
class ModelCard:
    """The base model as clients see it. `names[0]` is its canonical name, the others are aliases."""

    names: tuple[str, ...]
    digest: str
    max_model_len: int
    vocab_size: int
    created: int
    """Unix seconds."""
    eos_token_ids: tuple[int, ...] = ()
    """What ends a sequence, ascending."""
    device: str = ""
    dtype: str = ""
    lora_dtype: str = ""
    quantization: str = ""
    """These four as the engine's flags write them, `auto` resolved: with the version and the digest they are what an
    output depends on beside the request."""


@dataclass(frozen=True)
class AdapterCard:
    """A registered adapter: `name` is an alias of `digest`, `tier` the best place it can be served from now."""

    name: str
    digest: str
    rank: int
    nbytes: int
    created: int
    tier: str
    """`slot`, `host` or `disk`."""
    pinned: bool = False


@dataclass(frozen=True)
class MixOptions:
    """What the methods beyond `cat` need, in PEFT's words (`add_weighted_adapter`); None: the method's default."""

    density: float | None = None
    majority_sign_method: str | None = None
    svd_rank: int | None = None
    seed: int | None = None


class HealthState(StrEnum):
    """Whether requests are served."""

    OK = "ok"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Health:
    """The engine's state, and a sentence for the operator when it is not OK."""

    state: HealthState
    message: str = ""


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that the server uses."""

    chat_template: Any

    @property
    def backend_tokenizer(self) -> Any:
        """`tokenizers.Tokenizer`: its `encode` may run in several threads at once, the wrapper's may not."""
        ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The prompt's text for a conversation (`tokenize=False`)."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Every piece and its id."""
        ...


class TokenStream(Protocol):
    """The events of one request, each choice's in order; ends after the last choice's last event.

    Bounded: a stream whose reader lags is full at some point, and the engine pauses that sequence (no other) until the
    reader has caught up. A choice's last event always finds room. An event with `error` ends the whole request.
    """

    def __aiter__(self) -> Self:
        """Itself."""
        ...

    async def __anext__(self) -> TokenEvent:
        """The next event, when there is one."""
        ...

    def take(self) -> Sequence[TokenEvent]:
        """All events that lie ready, without waiting: a reader that lags catches up with one call."""
        ...

    async def aclose(self) -> None:
        """Cancel the request unless it ended; its blocks and slot are free with the next step. Never waits for a step.

        May be called at any time and repeatedly, also while `__anext__` is awaited, which then ends the iteration.
        """
        ...


class Backend(Protocol):
    """An engine that serves requests. Called on the event loop's thread only; nothing here blocks it.

    All methods raise EngineError and nothing else.
    """

    model: ModelCard
    tokenizer: Tokenizer
    metrics: EngineMetrics
    """Where the server records what it sees of requests, and the engine what its loader does."""

    def generate(self, request: GenerateRequest) -> TokenStream:
        """Queue a request. Raises at once: BUSY (queue full), DRAINING, ADAPTER_NOT_FOUND (unloaded since `resolve`),
        PROMPT_TOO_LONG, BAD_REQUEST (a constraint that does not compile). What fails later comes as an event.
        """
        ...

    async def resolve(
        self, model: str, adapters: Sequence[tuple[str, float]], method: str, options: MixOptions
    ) -> str | None:
        """What a request runs on: a digest for `GenerateRequest.adapter`, None for the base.

        `model` is a base name or digest, or an adapter's alias or digest. `adapters` (alias or digest, weight) are only
        given with a base; one adapter of weight 1 is that adapter itself, anything else a mix, whose digest is the
        recipe's. Raises MODEL_NOT_FOUND for `model`, ADAPTER_NOT_FOUND for an entry of `adapters`, MIX_INVALID
        (method, number, weights), RANK_TOO_LARGE. Starts no load: that is `generate`'s.
        """
        ...

    async def load_adapter(self, name: str, path: str, in_place: bool) -> AdapterCard:
        """Register the PEFT folder `path` as `name`, validated before it becomes visible.

        `path` is what the client wrote: a folder within the operator's adapter folder, which the backend enforces.
        `in_place` replaces another digest under the same name; requests that run keep theirs. Raises
        ADAPTER_NAME_TAKEN, ADAPTER_INVALID, ADAPTER_MISMATCH, ADAPTER_TOO_LARGE, RANK_TOO_LARGE.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget `name`. Requests that run end as they began. Raises ADAPTER_NOT_FOUND."""
        ...

    async def pin_adapter(self, name: str, pinned: bool) -> None:
        """Keep an adapter in its slot, or let it be evicted again. Raises ADAPTER_NOT_FOUND, BAD_REQUEST (no room)."""
        ...

    def adapters(self) -> Sequence[AdapterCard]:
        """All registered adapters, in the order of their names."""
        ...

    def health(self) -> Health:
        """Whether requests are served. O(1)."""
        ...

    def stats(self) -> EngineStats:
        """Levels and totals now. O(adapters in use)."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests with DRAINING, let the running ones end, cancel after `grace_s` what is left: their last
        event has `finish_reason` CANCELLED and a DRAINING error. Returns when none is left. Calling it again while it
        waits shortens the grace.
        """
        ...
