"""Server-sent events as OpenAI's clients read them: one JSON document an event, `[DONE]` after the last. Pure."""

from __future__ import annotations

from ..protocol.errors import OpenLoraError
from .errors import error_body

CONTENT_TYPE = "text/event-stream"
HEADERS = {
    "Content-Type": f"{CONTENT_TYPE}; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}
DONE = b"data: [DONE]\n\n"
"""The end of a complete stream; one that broke has none, so that nobody takes it for whole."""


def event(json: bytes) -> bytes:
    """The event that carries a JSON document (without line breaks, as encoders write it)."""
    return b"data: " + json + b"\n\n"


def error_event(error: OpenLoraError) -> bytes:
    """The last event of a stream that broke."""
    return event(error_body(error))
