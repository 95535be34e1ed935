"""The bodies that clients receive: OpenAI's shapes with vLLM's extras and one field of ours, `openlora`."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from ..errors import EngineError
from ..request import Timings


class ErrorDetail(Struct):
    """What went wrong: `code` is stable, `message` says what to do, `param` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct):
    """OpenAI's error body; also the last event of a stream that failed."""

    error: ErrorDetail

    @classmethod
    def of(cls, error: EngineError) -> ErrorBody:
        """The body for an error."""
        return cls(ErrorDetail(error.message, error.code.kind, error.param, error.code.value))


class PromptTokensDetails(Struct):
    """Prompt tokens that the prefix cache spared."""

    cached_tokens: int


class Usage(Struct):
    """Token counts; a prompt counts once whatever its number of choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChoiceTimings(Struct):
    """Where a choice spent its time, in seconds (`return_timings`)."""

    index: int
    queue_s: float
    adapter_wait_s: float
    adapter_tier: str
    prefill_s: float
    decode_s: float
    cached_tokens: int
    preemptions: int

    @classmethod
    def of(cls, index: int, timings: Timings) -> ChoiceTimings:
        """The engine's timings of the choice `index`."""
        return cls(
            index,
            timings.queue_s,
            timings.adapter_wait_s,
            timings.adapter_tier,
            timings.prefill_s,
            timings.decode_s,
            timings.num_cached_tokens,
            timings.num_preemptions,
        )


class OpenLora(Struct):
    """Our field: what the response was made with."""

    adapter: str | UnsetType | None = UNSET
    """Digest of the adapter or mix; null for the base."""
    timings: list[ChoiceTimings] | UnsetType = UNSET


class TopLogprob(Struct):
    """An alternative to a token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobEntry(Struct):
    """A token of a chat's answer with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities in the shape of /v1/chat/completions."""

    content: list[TokenLogprobEntry]
    refusal: None = None


class CompletionLogprobs(Struct):
    """Log-probabilities in the shape of /v1/completions."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class AssistantMessage(Struct):
    """A chat's whole answer."""

    role: str
    content: str
    refusal: None = None


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    openlora: OpenLora


class Delta(Struct):
    """What a chunk adds to an answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a streamed chat."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    openlora: OpenLora | UnsetType = UNSET


class CompletionChoice(Struct):
    """One completion, whole or a chunk's part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The answer of /v1/completions, and one event of it when streamed."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    openlora: OpenLora | UnsetType = UNSET


class ModelEntry(Struct, kw_only=True):
    """A base model or an adapter in /v1/models. `parent` is an adapter's base, `root` the digest of what is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "openlora"
    root: str
    parent: str | None
    max_model_len: int
    rank: int | UnsetType = UNSET
    size: int | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET


class ModelList(Struct, kw_only=True):
    """The answer of /v1/models."""

    object: str = "list"
    data: list[ModelEntry]


class Tokenized(Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct):
    """The answer of /detokenize."""

    prompt: str


class HealthBody(Struct):
    """The answer of /health."""

    status: str
    message: str


class VersionBody(Struct):
    """The answer of /version: the build, and what it runs as; together what an output depends on beside the request."""

    version: str
    model: str
    model_digest: str
    device: str
    dtype: str
    lora_dtype: str
    quantization: str
    eos_token_ids: list[int]
