"""The bodies that clients send: OpenAI's fields, vLLM's extras, ours. Shapes only; what they mean is `conversion`'s.

Every field may be null, which is its default. What is not here is in `fields`: ignored, or refused by name.
"""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Raw, Struct

NULL = Raw(b"null")


def is_null(value: Raw) -> bool:
    """Whether a field that is passed on undecoded was left out."""
    return bytes(value) == b"null"


class StreamOptions(Struct):
    """How a stream reports usage. vLLM's `continuous_usage_stats` puts it into every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Struct):
    """OpenAI's wrapping of a schema."""

    schema: Raw = NULL


class ResponseFormat(Struct):
    """OpenAI's way to constrain the output."""

    type: str
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to constrain the output: exactly one of them."""

    json: Raw = NULL
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None


class AdapterWeight(Struct, forbid_unknown_fields=True):
    """One adapter of a mix, by alias or digest."""

    id: str
    weight: float = 1.0


class AdapterOptions(Struct, forbid_unknown_fields=True):
    """Parameters of a mixing method, in PEFT's words."""

    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] | None = None
    svd_rank: int | None = None
    seed: int | None = None


class GenerationBody(Struct, kw_only=True):
    """What both completion routes share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # Sampling.
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    # Constraints.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = NULL
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    # Adapters.
    adapters: list[AdapterWeight] | None = None
    adapter_method: str | None = None
    adapter_options: AdapterOptions | None = None
    cache_salt: str | None = None
    # What the response tells beside the text.
    return_token_ids: bool | None = None
    return_timings: bool | None = None


class TextPart(Struct):
    """A part of a message's content; only text is served."""

    type: str
    text: str | None = None


class Message(Struct):
    """One message of a conversation. Keys that only responses carry are ignored."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Raw = NULL
    function_call: Raw = NULL


TemplateKwargs = dict[str, str | int | float | bool | None]


class Conversation(Protocol):
    """The part of a body that a chat template turns into a prompt."""

    messages: list[Message]
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: TemplateKwargs | None


class ChatBody(GenerationBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


PromptField = str | list[str | int | list[int]]


class CompletionBody(GenerationBody, kw_only=True):
    """POST /v1/completions."""

    prompt: PromptField
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


class TokenizeTextBody(Struct, kw_only=True):
    """POST /tokenize with text."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatBody(Struct, kw_only=True):
    """POST /tokenize with a conversation."""

    messages: list[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class LoadAdapterBody(Struct, kw_only=True):
    """POST /v1/load_lora_adapter: vLLM's fields, and SGLang's `pinned`."""

    lora_name: str
    lora_path: str
    load_inplace: bool | None = None
    base_model_name: str | None = None
    pinned: bool | None = None


class NamedAdapterBody(Struct, kw_only=True):
    """POST /v1/unload_lora_adapter, /v1/pin_lora_adapter, /v1/unpin_lora_adapter."""

    lora_name: str
    lora_int_id: int | None = None
