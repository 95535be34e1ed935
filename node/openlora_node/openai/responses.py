"""What clients receive: whole responses, the chunks of streamed ones, usage, model lists; OpenAI's shapes. Pure.

A response may carry one field that OpenAI's do not have, `openlora`: what the caller hands in as `extra`, such as the
receipt's id and the fee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from .body import Body
from .logprobs import compact_logprobs, merge_logprobs
from .sse import event

Extra = Mapping[str, Any]


class Usage(Struct):
    """Token counts; a prompt counts once whatever its number of choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class _Message(Struct):
    role: str
    content: str
    refusal: None = None


class _Choice(Struct):
    index: int
    logprobs: Raw | None
    finish_reason: str | None
    text: str | UnsetType = UNSET
    delta: _Delta | UnsetType = UNSET
    message: _Message | UnsetType = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET


class _Response(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage | UnsetType | None = UNSET
    openlora: Extra | UnsetType = UNSET


class ModelEntry(Struct, kw_only=True):
    """A base model or an adapter in /v1/models. `root` is its artifact id, `parent` an adapter's base."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "openlora"
    root: str | None = None
    parent: str | None = None
    max_model_len: int | UnsetType = UNSET
    openlora: Extra | UnsetType = UNSET


class _ModelList(Struct):
    data: Sequence[ModelEntry]
    object: str = "list"


def model_list(entries: Sequence[ModelEntry]) -> bytes:
    """The JSON of /v1/models."""
    return msgspec.json.encode(_ModelList(entries))


@dataclass(frozen=True)
class Envelope:
    """What every body of one response repeats. `id` is without its prefix; `created` is in unix seconds."""

    body: Body
    id: str
    created: int
    model: str
    prompt_tokens: int

    def response(
        self, choices: list[_Choice], usage: Usage | UnsetType | None, extra: Extra | None, *, chunk: bool
    ) -> bytes:
        """One JSON body around these choices."""
        chat = self.body.kind == "chat"
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        given = UNSET if extra is None else extra
        prefix = "chatcmpl-" if chat else "cmpl-"
        made = _Response(prefix + self.id, kind, self.created, self.model, choices, usage, given)
        return msgspec.json.encode(made)

    def usage(self, completion_tokens: int) -> Usage:
        """The usage after so many generated tokens of all choices."""
        return Usage(self.prompt_tokens, completion_tokens, self.prompt_tokens + completion_tokens)


class StreamedResponse:
    """One response as server-sent events. Chunks of a choice must be made in order."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._begun: set[int] = set()
        self._completion_tokens = 0

    def chunk(
        self,
        choice: int,
        text: str,
        token_ids: Sequence[int] = (),
        logprobs: bytes = b"",
        finish_reason: str | None = None,
        extra: Extra | None = None,
    ) -> bytes:
        """The event of a choice's next piece. Raises ProtocolError MALFORMED for bad log-probabilities."""
        body = self._envelope.body
        self._completion_tokens += len(token_ids)
        made = _Choice(choice, _raw(body, logprobs), finish_reason)
        if body.kind == "chat":
            first = choice not in self._begun
            made.delta = _Delta("assistant" if first else UNSET, text if text or first else UNSET)
        else:
            made.text = text
        if body.return_token_ids:
            made.token_ids = token_ids
        self._begun.add(choice)
        return event(self._envelope.response([made], self._usage_so_far(), extra, chunk=True))

    def usage(self, extra: Extra | None = None) -> bytes:
        """The event before the end of a stream whose client asked for its usage: no choices."""
        usage = self._envelope.usage(self._completion_tokens)
        return event(self._envelope.response([], usage, extra, chunk=True))

    def _usage_so_far(self) -> Usage | UnsetType | None:
        body = self._envelope.body
        if not body.include_usage:
            return UNSET
        return self._envelope.usage(self._completion_tokens) if body.continuous_usage else None


@dataclass
class _Pieces:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    finish_reason: str | None = None


class WholeResponse:
    """One response gathered from its pieces."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._choices = [_Pieces() for _ in range(envelope.body.choices)]

    def add(
        self,
        choice: int,
        text: str,
        token_ids: Sequence[int] = (),
        logprobs: bytes = b"",
        finish_reason: str | None = None,
    ) -> None:
        """Keep a choice's next piece. Raises IndexError for a choice that was not asked for."""
        pieces = self._choices[choice]
        pieces.texts.append(text)
        pieces.token_ids.extend(token_ids)
        pieces.logprobs.append(logprobs)
        pieces.finish_reason = finish_reason or pieces.finish_reason

    def finish(self, choice: int, finish_reason: str) -> None:
        """Say why a choice ended."""
        self._choices[choice].finish_reason = finish_reason

    def encode(self, extra: Extra | None = None) -> bytes:
        """The JSON body. Raises ProtocolError MALFORMED for log-probabilities that are no object."""
        body = self._envelope.body
        choices = []
        for index, pieces in enumerate(self._choices):
            made = _Choice(index, _raw(body, merge_logprobs(pieces.logprobs)), pieces.finish_reason)
            text = "".join(pieces.texts)
            if body.kind == "chat":
                made.message = _Message("assistant", text)
            else:
                made.text = text
            if body.return_token_ids:
                made.token_ids = pieces.token_ids
            choices.append(made)
        usage = self._envelope.usage(sum(len(pieces.token_ids) for pieces in self._choices))
        return self._envelope.response(choices, usage, extra, chunk=False)


def _raw(body: Body, logprobs: bytes) -> Raw | None:
    """Log-probabilities where the client asked for them, checked: what a node sends is not to break our JSON."""
    if not body.logprobs or not logprobs:
        return None
    return Raw(compact_logprobs(logprobs))
