"""OpenAI's dialect as node and gateway speak it: bodies in, responses, chunks, events and errors out. Pure."""

from .body import Body, Kind, parse_body
from .errors import BodyError, error_body, retry_after

__all__ = ["Body", "BodyError", "Kind", "error_body", "parse_body", "retry_after"]
