"""One event of an engine's stream to chunks, checked: token ids there, choices that were asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError
from .failures import broken, failure
from .values import Chunk


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw(b"null")


_EVENT = msgspec.json.Decoder(_Event)


def chunks_of(text: bytes, choices: int) -> Iterator[Chunk]:
    """The chunks of one event. Raises the error it tells, ENGINE_FAILED for what makes no sense."""
    try:
        event = _EVENT.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise broken("the engine sent an event that does not parse") from None
    if bytes(event.error) != b"null":
        raise _mid_stream(failure(None, text))
    for choice in event.choices:
        said = (choice.delta.content if choice.delta is not None else choice.text) or ""
        if not 0 <= choice.index < choices:
            raise broken("the engine answered a choice that was not asked for")
        if said and choice.token_ids is None:
            raise broken("the engine tells no token ids, it may be too old (vLLM from 0.10.2)")
        token_ids = choice.token_ids or ()
        if said or token_ids or choice.finish_reason is not None:
            logprobs = bytes(choice.logprobs)
            yield Chunk(choice.index, token_ids, said, b"" if logprobs == b"null" else logprobs, choice.finish_reason)


def _mid_stream(error: OpenLoraError) -> OpenLoraError:
    """A run that began and was ended by the engine's own state has failed, whatever that state is."""
    if error.code in (ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.BUSY, ErrorCode.CANCELLED, ErrorCode.ADAPTER_NOT_FOUND):
        return broken()
    return error
