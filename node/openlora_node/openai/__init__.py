"""OpenAI's dialect as node and gateway speak it: bodies in, responses, chunks, events and errors out. Pure."""

from .body import Body, Kind, parse_body
from .errors import BodyError, error_body, retry_after
from .logprobs import merge_logprobs, split_logprobs
from .responses import Envelope, ModelEntry, StreamedResponse, Usage, WholeResponse, model_list
from .sse import DONE, HEADERS, error_event, event

__all__ = [
    "DONE",
    "HEADERS",
    "Body",
    "BodyError",
    "Envelope",
    "Kind",
    "ModelEntry",
    "StreamedResponse",
    "Usage",
    "WholeResponse",
    "error_body",
    "error_event",
    "event",
    "merge_logprobs",
    "model_list",
    "parse_body",
    "retry_after",
    "split_logprobs",
]
