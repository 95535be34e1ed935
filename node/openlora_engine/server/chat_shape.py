"""What a response of /v1/chat/completions looks like, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from ..request import ChosenLogprob, TokenLogprob
from .pieces import Piece
from .responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    Delta,
    TokenLogprobEntry,
    TopLogprob,
    Usage,
)
from .shape import Envelope, finite
from .tokentext import TokenText


class ChatShape:
    """Responses of /v1/chat/completions."""

    def __init__(self, envelope: Envelope, tokens: TokenText) -> None:
        self._envelope = envelope
        self._tokens = tokens
        self._begun: set[int] = set()

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Struct:
        """As Shape says."""
        to = self._envelope
        choices = [
            ChatChoice(
                piece.choice,
                AssistantMessage("assistant", piece.text),
                self._logprobs(piece.logprobs),
                str(piece.finish_reason),
                piece.stop_reason,
                to.ids(piece),
            )
            for piece in pieces
        ]
        return ChatCompletion(
            id=to.id,
            created=to.created,
            model=to.model,
            choices=choices,
            usage=usage,
            prompt_token_ids=to.prompt_ids(0),
            openlora=to.ours(pieces),
        )

    def chunk(self, piece: Piece, usage: Usage | UnsetType | None) -> Struct:
        """As Shape says. The first chunk of a choice also says who speaks."""
        to = self._envelope
        first, ends = piece.choice not in self._begun, piece.finish_reason is not None
        choice = ChatChunkChoice(
            piece.choice,
            Delta("assistant" if first else UNSET, piece.text if piece.text or first else UNSET),
            self._logprobs(piece.logprobs),
            piece.finish_reason.value if piece.finish_reason else None,
            piece.stop_reason if ends else UNSET,
            to.ids(piece),
        )
        chunk = ChatCompletionChunk(
            id=to.id,
            created=to.created,
            model=to.model,
            choices=[choice],
            usage=usage,
            prompt_token_ids=UNSET if self._begun else to.prompt_ids(0),
            openlora=to.ours([piece]) if ends else UNSET,
        )
        self._begun.add(piece.choice)
        return chunk

    def usage_chunk(self, usage: Usage) -> Struct:
        """As Shape says."""
        to = self._envelope
        return ChatCompletionChunk(id=to.id, created=to.created, model=to.model, choices=[], usage=usage)

    def _logprobs(self, logprobs: Sequence[ChosenLogprob]) -> ChatLogprobs | None:
        if not self._envelope.logprobs:
            return None
        return ChatLogprobs([self._entry(entry) for entry in logprobs])

    def _entry(self, entry: ChosenLogprob) -> TokenLogprobEntry:
        token, logprob, raw = self._token(entry.chosen)
        return TokenLogprobEntry(token, logprob, raw, [TopLogprob(*self._token(top)) for top in entry.top])

    def _token(self, entry: TokenLogprob) -> tuple[str, float, list[int]]:
        raw = self._tokens.bytes_of(entry.token_id)
        return raw.decode("utf-8", "replace"), finite(entry.logprob), list(raw)
