"""Log-probabilities as the engine's JSON, in either dialect's shape: an object of lists, one entry a token. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..protocol.errors import ErrorCode, ProtocolError


def merge_logprobs(parts: Sequence[bytes]) -> bytes:
    """The log-probabilities of consecutive pieces of one choice as one; empty parts add nothing.

    Raises ProtocolError MALFORMED for what is no JSON object.
    """
    told = [part for part in parts if part]
    if len(told) < 2:
        return told[0] if told else b""
    merged: dict[str, Any] = {}
    for part in told:
        for name, value in _object(part).items():
            if isinstance(value, list) and isinstance(merged.get(name), list):
                merged[name].extend(value)
            else:
                merged.setdefault(name, value)
    return msgspec.json.encode(merged)


def split_logprobs(part: bytes, tokens: int, most: int) -> list[tuple[int, bytes]]:
    """(tokens, log-probabilities) of consecutive pieces of one piece, none above `most` bytes unless it is one token's.

    Raises ProtocolError MALFORMED for what is no JSON object.
    """
    if len(part) <= most or tokens < 2:
        return [(tokens, part)]
    whole, half = _object(part), tokens // 2
    each = {name: value for name, value in whole.items() if isinstance(value, list) and len(value) == tokens}
    front = msgspec.json.encode(whole | {name: value[:half] for name, value in each.items()})
    back = msgspec.json.encode({name: value[half:] for name, value in each.items()})
    return split_logprobs(front, half, most) + split_logprobs(back, tokens - half, most)


def compact_logprobs(part: bytes) -> bytes:
    """The same object on one line, whatever wrote it: fit for an event. Raises ProtocolError MALFORMED."""
    return msgspec.json.encode(_object(part))


def _object(part: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(part, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError(ErrorCode.MALFORMED, "log-probabilities are a JSON object") from None
