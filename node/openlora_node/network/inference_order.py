"""What a node may say next in one exchange: the payer's check of `/openlora/infer/1`. Pure."""

from __future__ import annotations

from enum import Enum

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.messages import (
    Accepted,
    AskQuote,
    Cancel,
    Done,
    ErrorReply,
    Infer,
    InferMessage,
    Paused,
    Pay,
    QuoteReply,
    Settled,
    Tokens,
)

MAX_CHOICES = 128


class Stage(Enum):
    """Where an exchange is."""

    IDLE = "idle"
    """Nothing is asked: before the first message and after a quote."""
    ASKED = "asked"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    OVER = "over"


MAY_SEND: dict[type[InferMessage], tuple[Stage, ...]] = {
    AskQuote: (Stage.IDLE,),
    Infer: (Stage.IDLE,),
    Pay: (Stage.RUNNING, Stage.DONE),
    Cancel: (Stage.ASKED, Stage.SENT, Stage.RUNNING, Stage.DONE),
}
MAY_RECEIVE: dict[type[InferMessage], tuple[Stage, ...]] = {
    QuoteReply: (Stage.ASKED,),
    Accepted: (Stage.SENT,),
    Tokens: (Stage.RUNNING,),
    Paused: (Stage.RUNNING,),
    Done: (Stage.SENT, Stage.RUNNING),  # a repeated request may get its receipt only
    Settled: (Stage.RUNNING, Stage.DONE),
    ErrorReply: (Stage.ASKED, Stage.SENT, Stage.RUNNING, Stage.DONE),
}
LEADS_TO: dict[type[InferMessage], Stage] = {
    AskQuote: Stage.ASKED,
    Infer: Stage.SENT,
    QuoteReply: Stage.IDLE,
    Accepted: Stage.RUNNING,
    Done: Stage.DONE,
    ErrorReply: Stage.OVER,
}


class PayerOrder:
    """Follows one exchange. Both methods raise ProtocolError MALFORMED for what has no place in it."""

    def __init__(self) -> None:
        self.stage = Stage.IDLE
        self._next: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"PayerOrder({self.stage.value})"

    def sends(self, message: InferMessage) -> None:
        """The payer is about to send this."""
        kind = type(message)
        if self.stage not in MAY_SEND.get(kind, ()):
            raise ProtocolError(
                ErrorCode.MALFORMED, f"{kind.__name__} has no place in an exchange that is {self.stage.value}"
            )
        self.stage = LEADS_TO.get(kind, self.stage)

    def receives(self, message: InferMessage) -> None:
        """The node sent this."""
        kind = type(message)
        if self.stage not in MAY_RECEIVE.get(kind, ()) or (isinstance(message, Tokens) and not self._follows(message)):
            raise ProtocolError(ErrorCode.MALFORMED, "the node's message has no place here")
        if isinstance(message, Settled) and self.stage is Stage.DONE:
            self.stage = Stage.OVER
        self.stage = LEADS_TO.get(kind, self.stage)

    def _follows(self, tokens: Tokens) -> bool:
        """Places count from 0 in each choice: a repeated or lost message shows."""
        expected = self._next.get(tokens.choice, 0)
        self._next[tokens.choice] = expected + len(tokens.token_ids)
        return tokens.start == expected and len(self._next) <= MAX_CHOICES
