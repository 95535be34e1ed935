"""The body that a node gets: the client's prompt and sampling, with base and bounds spelled out. Pure.

What only the gateway needs (names, adapters, streaming, users) stays here: the signed pipeline says the rest.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..openai import Body
from ..protocol.ids import format_artifact_id

DEFAULT_CHAT_TOKENS = 1_024
"""Tokens of a chat's answer where the client sets no bound: a response must have a price before it begins."""

_KEPT_HERE = frozenset(
    {"model", "adapters", "adapter_method", "adapter_options", "stream", "stream_options", "user", "best_of", "n"}
    | {"max_tokens", "max_completion_tokens", "return_token_ids", "return_timings", "metadata"}
)


def node_body(body: Body, base: bytes, max_tokens: int) -> bytes:
    """The exact bytes that are signed and sent. `max_tokens` bounds each choice."""
    fields: dict[str, Any] = {name: value for name, value in body.raw.items() if name not in _KEPT_HERE}
    fields |= {"model": format_artifact_id(base), "n": body.n, "max_tokens": max_tokens, "stream": True}
    return msgspec.json.encode(fields)


def default_max_tokens(body: Body) -> int | None:
    """The bound on each choice that the client set; None where the gateway chooses."""
    return body.max_tokens
