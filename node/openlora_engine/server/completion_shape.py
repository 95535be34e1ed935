"""What a response of /v1/completions looks like, whole or in chunks."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, Struct, UnsetType

from .pieces import Piece
from .responses import Completion, CompletionChoice, CompletionLogprobs, OpenLora, Usage
from .shape import Envelope, finite
from .tokentext import TokenText


class CompletionShape:
    """Responses of /v1/completions."""

    def __init__(self, envelope: Envelope, tokens: TokenText) -> None:
        self._envelope = envelope
        self._tokens = tokens
        self._offsets: dict[int, _Offset] = {}
        self._begun: set[int] = set()

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Struct:
        """As Shape says."""
        return self._body([self._choice(piece) for piece in pieces], usage, self._envelope.ours(pieces))

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Struct:
        """As Shape says."""
        ours = self._envelope.ours([piece]) if piece.finish_reason is not None else UNSET
        return self._body([self._choice(piece)], usage, ours)

    def usage_chunk(self, usage: Usage) -> Struct:
        """As Shape says."""
        return self._body([], usage, UNSET)

    def _body(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None, ours: OpenLora | UnsetType
    ) -> Completion:
        to = self._envelope
        return Completion(id=to.id, created=to.created, model=to.model, choices=choices, usage=usage, openlora=ours)

    def _choice(self, piece: Piece) -> CompletionChoice:
        to, first = self._envelope, piece.choice not in self._begun
        self._begun.add(piece.choice)
        return CompletionChoice(
            piece.choice,
            piece.text,
            self._logprobs(piece),
            piece.finish_reason.value if piece.finish_reason else None,
            piece.stop_reason if piece.finish_reason is not None else UNSET,
            to.ids(piece),
            to.prompt_ids(piece.choice) if first else UNSET,
        )

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if not self._envelope.logprobs:
            return None
        offset = self._offsets.setdefault(piece.choice, _Offset())
        found = CompletionLogprobs([], [], [], [])
        for entry in piece.logprobs:
            found.text_offset.append(offset.characters)
            found.tokens.append(self._tokens.key_of(entry.chosen.token_id))
            found.token_logprobs.append(finite(entry.chosen.logprob))
            found.top_logprobs.append({self._tokens.key_of(top.token_id): finite(top.logprob) for top in entry.top})
            offset.advance(self._tokens.bytes_of(entry.chosen.token_id))
        return found


@dataclass
class _Offset:
    """Where in a choice's text the next token begins, in characters; a character counts once its last byte is there."""

    characters: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def advance(self, raw: bytes) -> None:
        self.characters += len(self._decoder.decode(raw))
