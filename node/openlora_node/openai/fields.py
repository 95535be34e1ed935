"""Request fields beyond those we serve: which change nothing and are ignored, which would change the output.

The same lists as the engine's, so that the door refuses before anything is paid what the engine would refuse after; a
test holds the two equal. A field nobody knows is refused too: a misspelt parameter must not be dropped in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from ..protocol.errors import ErrorCode
from .errors import BodyError

IGNORED = frozenset(
    {
        # OpenAI: bookkeeping, routing, hints of speed.
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        # vLLM: hints of scheduling, names.
        "guided_decoding_backend",
        "priority",
        "request_id",
    }
)

HARMLESS_VALUES: Mapping[str, tuple[Any, ...]] = {
    # OpenAI.
    "audio": (None,),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    # vLLM.
    "add_special_tokens": (None, False),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "chat_template": (None,),
    "documents": (None, []),
    "early_stopping": (None, False),
    "guided_grammar": (None,),
    "guided_json_object": (None, False),
    "guided_whitespace_pattern": (None,),
    "include_reasoning": (None, True),
    "kv_transfer_params": (None,),
    "length_penalty": (None, 1.0),
    "logits_processors": (None, []),
    "mm_processor_kwargs": (None, {}),
    "prompt_embeds": (None,),
    "prompt_logprobs": (None,),
    "return_tokens_as_token_ids": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "vllm_xargs": (None, {}),
}

_LONGEST_HARMLESS_VALUE = 64
"""Bytes of JSON; a longer value is not looked at."""


def check_fields(body: Mapping[str, msgspec.Raw], served: frozenset[str]) -> None:
    """Raise BodyError MALFORMED or UNSUPPORTED for the first field of `body` that may not be dropped."""
    for name, value in body.items():
        if name in served or name in IGNORED:
            continue
        if name not in HARMLESS_VALUES:
            raise BodyError(ErrorCode.MALFORMED, f"unknown field `{_shown(name)}`{_hint(name, served)}", name[:64])
        if not _is_harmless(name, value):
            raise BodyError(ErrorCode.UNSUPPORTED, f"`{name}` is not supported with this value: leave it out", name)


def _is_harmless(name: str, value: msgspec.Raw) -> bool:
    if len(memoryview(value)) > _LONGEST_HARMLESS_VALUE:
        return False
    try:
        return msgspec.json.decode(value) in HARMLESS_VALUES[name]
    except msgspec.ValidationError:  # a number beyond what any program reads
        return False


def _shown(name: str) -> str:
    return name if len(name) <= 64 and name.isprintable() else ascii(name[:64])


def _hint(name: str, served: frozenset[str]) -> str:
    close = difflib.get_close_matches(name[:64], served, n=1)
    return f": did you mean `{close[0]}`?" if close else ": remove it"
