"""What an engine answers when it does not answer, in the protocol's codes. Pure; no text of an engine's exceptions."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError

MAX_MESSAGE_CHARS = 400
DEFAULT_RETRY_MS = 1_000
LONGEST_RETRY_MS = 600_000


class _Detail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _Error(msgspec.Struct):
    error: _Detail


_FLAT = msgspec.json.Decoder(_Detail)
_NESTED = msgspec.json.Decoder(_Error)

_NATIVE: Mapping[str, ErrorCode] = {
    "BAD_REQUEST": ErrorCode.MALFORMED,
    "PROMPT_EMPTY": ErrorCode.MALFORMED,
    "PROMPT_TOO_LONG": ErrorCode.PROMPT_TOO_LONG,
    "BODY_TOO_LARGE": ErrorCode.FRAME_TOO_LARGE,
    "REQUEST_TIMEOUT": ErrorCode.ENGINE_FAILED,
    "UNSUPPORTED": ErrorCode.UNSUPPORTED,
    "MODEL_NOT_FOUND": ErrorCode.ADAPTER_NOT_FOUND,
    "ADAPTER_NOT_FOUND": ErrorCode.ADAPTER_NOT_FOUND,
    "ADAPTER_INVALID": ErrorCode.UNSUPPORTED,
    "ADAPTER_MISMATCH": ErrorCode.UNSUPPORTED,
    "ADAPTER_TOO_LARGE": ErrorCode.UNSUPPORTED,
    "RANK_TOO_LARGE": ErrorCode.UNSUPPORTED,
    "MIX_INVALID": ErrorCode.UNSUPPORTED,
    "ADAPTER_IN_USE": ErrorCode.BUSY,
    "BUSY": ErrorCode.BUSY,
    "CANCELLED": ErrorCode.CANCELLED,
    "DRAINING": ErrorCode.ENGINE_UNAVAILABLE,
    "ENGINE_FAILED": ErrorCode.ENGINE_FAILED,
    "OUT_OF_MEMORY": ErrorCode.ENGINE_FAILED,
}
"""Our engine's codes (docs/engine-api.md). A name it does not know is an adapter's: the base is never named wrongly."""

_STATUSES: Mapping[int, ErrorCode] = {
    400: ErrorCode.MALFORMED,
    401: ErrorCode.ENGINE_FAILED,
    403: ErrorCode.ENGINE_FAILED,
    404: ErrorCode.ADAPTER_NOT_FOUND,
    413: ErrorCode.FRAME_TOO_LARGE,
    422: ErrorCode.MALFORMED,
    429: ErrorCode.BUSY,
    501: ErrorCode.UNSUPPORTED,
    502: ErrorCode.ENGINE_UNAVAILABLE,
    503: ErrorCode.ENGINE_UNAVAILABLE,
    504: ErrorCode.ENGINE_UNAVAILABLE,
}
_LONG_PROMPT = ("maximum context length", "max_model_len", "maximum model length")


def unavailable() -> OpenLoraError:
    """The engine cannot be reached, or is starting."""
    return OpenLoraError(ErrorCode.ENGINE_UNAVAILABLE, retry_after_ms=DEFAULT_RETRY_MS)


def broken(problem: str = "the engine broke off") -> OpenLoraError:
    """The engine failed in the middle of a response."""
    return OpenLoraError(ErrorCode.ENGINE_FAILED, f"{problem}: the run costs nothing, send the same request again")


def failure(status: int | None, body: bytes, retry_after: str | None = None) -> OpenLoraError:
    """The error of a response with a status that is no success, or (no status) of an event that says `error`."""
    detail = _detail(body)
    if status is None:
        status = detail.code if isinstance(detail.code, int) else 500
    code = _NATIVE.get(str(detail.code))
    if code is not None:  # written by us, for whoever caused it
        message: str | None = detail.message[:MAX_MESSAGE_CHARS] or None
    else:
        code, message = _foreign(status, detail.message)
    waits = code in (ErrorCode.BUSY, ErrorCode.ENGINE_UNAVAILABLE)
    return OpenLoraError(code, message, retry_after_ms=_milliseconds(retry_after) if waits else None)


def _foreign(status: int, message: str) -> tuple[ErrorCode, str | None]:
    """Another engine's error: its text is not shown, for nobody vouches that it holds no path and no prompt."""
    if status in (400, 422) and any(words in message for words in _LONG_PROMPT):
        return ErrorCode.PROMPT_TOO_LONG, None
    code = _STATUSES.get(status, ErrorCode.ENGINE_FAILED)
    if status in (401, 403):
        return code, "the engine refuses this node's API key: its operator has to set api_key_file"
    if code is ErrorCode.MALFORMED:
        return code, "the engine does not take this request: check the values of its fields"
    return code, None


def _detail(body: bytes) -> _Detail:
    try:
        return _NESTED.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _FLAT.decode(body)  # older vLLM
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Detail()


def _milliseconds(retry_after: str | None) -> int:
    try:
        return min(max(int(float(retry_after or "") * 1000), 1), LONGEST_RETRY_MS)
    except (ValueError, OverflowError):
        return DEFAULT_RETRY_MS
