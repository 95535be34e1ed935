"""Errors in OpenAI's words: the field at fault, and the body that a client's library turns into its own exception."""

from __future__ import annotations

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError

MAX_MESSAGE_CHARS = 400
"""Of a message that may quote what the client sent; a wire message takes 512."""

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "payment_required_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "conflict_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled",
}


class BodyError(ProtocolError):
    """A request body that cannot be served. `param` names the field at fault, as OpenAI's errors do."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(code, message[:MAX_MESSAGE_CHARS])


class ErrorDetail(msgspec.Struct):
    """What went wrong. `code` is stable, `message` says what to do; `retryable` as in docs/protocol.md section 10."""

    message: str
    type: str
    param: str | None
    code: str
    retryable: bool


class ErrorBody(msgspec.Struct):
    """OpenAI's error body with the protocol's fields; also the last event of a stream that failed."""

    error: ErrorDetail


def error_body(error: OpenLoraError) -> bytes:
    """The JSON of an error; its HTTP status is `error.code.http_status`."""
    code = error.code
    kind = _KINDS.get(code.http_status, "server_error")
    param = error.param if isinstance(error, BodyError) else None
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, kind, param, code.value, code.retryable)))


def retry_after(error: OpenLoraError) -> str | None:
    """The value of a Retry-After header, whole seconds rounded up; None where waiting is not what helps."""
    if error.retry_after_ms is None:
        return None
    return str(max(1, -(-error.retry_after_ms // 1000)))
