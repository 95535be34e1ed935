"""What goes into the engine and what comes out of it: requests, and the events of each step. Knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from .errors import EngineError
from .sampling.params import SamplingParams


class FinishReason(StrEnum):
    """Why a choice ended; the first two are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class GenerateRequest:
    """One request as the engine runs it: token ids in, sampling, and which adapter.

    `adapter` is the digest of an adapter or of a mix (`sha256:<hex>`), None for the base. `tenant` is whom the queue
    limits and fairness count; `cache_salt` keeps prefix-cache hits among requests of one salt.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    tenant: str = ""
    cache_salt: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a token under the model, before temperature and truncation."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class ChosenLogprob:
    """The chosen token's log-probability and rank-ordered alternatives (the k likeliest)."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Where one choice spent its time, in seconds, and what the caches spared it."""

    queue_s: float
    """Arrival until the first scheduled token."""
    adapter_wait_s: float
    """Part of the queue time that the adapter's load accounts for."""
    adapter_tier: str
    """Where the adapter was found: `base`, `slot`, `host` or `disk`."""
    prefill_s: float
    decode_s: float
    num_cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""
    num_preemptions: int


@dataclass(frozen=True)
class TokenEvent:
    """What one step gave one choice. Events of a request arrive in order; the last one has `finish_reason` set.

    `text` is the text that became certain: it lags behind `token_ids` while a character is incomplete or a stop string
    may be forming. `stop_reason` is the stop string or token id that matched.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[ChosenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: EngineError | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    timings: Timings | None = None
