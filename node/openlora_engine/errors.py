"""Every error the engine can answer with: a stable code, its HTTP status, and a sentence that says what to do.

Codes travel to clients in the OpenAI error body (`error.code`) and are never renamed. Messages carry no exception text
and no path of this machine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Code(StrEnum):
    """A stable error code with the HTTP status and the OpenAI error type it is sent with."""

    http_status: int
    kind: str

    def __new__(cls, code: str, http_status: int, kind: str) -> Self:
        """Build one row of the table."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.http_status = http_status
        member.kind = kind
        return member

    # What the client sent.
    BAD_REQUEST = "BAD_REQUEST", 400, "invalid_request_error"
    PROMPT_EMPTY = "PROMPT_EMPTY", 400, "invalid_request_error"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG", 400, "invalid_request_error"
    UNSUPPORTED = "UNSUPPORTED", 400, "invalid_request_error"
    UNAUTHORIZED = "UNAUTHORIZED", 401, "authentication_error"
    FORBIDDEN = "FORBIDDEN", 403, "permission_error"
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND", 404, "not_found_error"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND", 404, "not_found_error"
    ADAPTER_NOT_FOUND = "ADAPTER_NOT_FOUND", 404, "not_found_error"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED", 405, "invalid_request_error"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT", 408, "invalid_request_error"
    BODY_TOO_LARGE = "BODY_TOO_LARGE", 413, "invalid_request_error"

    # Adapters.
    ADAPTER_INVALID = "ADAPTER_INVALID", 422, "invalid_request_error"
    ADAPTER_MISMATCH = "ADAPTER_MISMATCH", 422, "invalid_request_error"
    ADAPTER_TOO_LARGE = "ADAPTER_TOO_LARGE", 422, "invalid_request_error"
    RANK_TOO_LARGE = "RANK_TOO_LARGE", 422, "invalid_request_error"
    MIX_INVALID = "MIX_INVALID", 422, "invalid_request_error"
    ADAPTER_IN_USE = "ADAPTER_IN_USE", 409, "conflict_error"
    ADAPTER_NAME_TAKEN = "ADAPTER_NAME_TAKEN", 409, "conflict_error"

    # Load and faults.
    BUSY = "BUSY", 429, "rate_limit_error"
    CANCELLED = "CANCELLED", 499, "cancelled"
    ENGINE_FAILED = "ENGINE_FAILED", 500, "server_error"
    DRAINING = "DRAINING", 503, "server_error"
    OUT_OF_MEMORY = "OUT_OF_MEMORY", 507, "server_error"

    # Start-up.
    CONFIG_INVALID = "CONFIG_INVALID", 500, "server_error"
    MODEL_UNSUPPORTED = "MODEL_UNSUPPORTED", 500, "server_error"
    DOES_NOT_FIT = "DOES_NOT_FIT", 500, "server_error"


class EngineError(Exception):
    """An error with a stable code and one sentence for whoever caused it.

    `retry_after_s` is set where waiting helps (BUSY, DRAINING); `param` names the request field at fault.
    """

    def __init__(
        self, code: Code, message: str, *, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param
        super().__init__(f"{code.value}: {message}")
