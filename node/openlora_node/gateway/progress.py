"""One request as the payer follows it, message by message: what may come next, what has come. Pure: no I/O, no clock.

The node is a stranger: a message out of turn, a repeated or lost token, a token too many, another prompt count end the
request with RECEIPT_INVALID, and what was counted until then is all that is ever paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.messages import Accepted, Done, Paused, Tokens
from ..protocol.structs import output_hash


class Stage(Enum):
    """Where a request stands."""

    SENT = "sent"
    ACCEPTED = "accepted"
    DONE = "done"


@dataclass(frozen=True)
class Piece:
    """What one message adds to one choice. `finish_reason` stands with the last piece of a response."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: bytes = b""


LOGPROB_BYTES = 1024
"""Of JSON for one token's log-probability, on average over a response."""
MARGIN = 64
"""Characters and bytes that a response may hold beyond what its tokens account for."""
PAUSES = 4
"""Pauses that ask for no more than an earlier one did. What is asked for grows with what all requests brought."""


class Progress:
    """What was asked, and what has come of it."""

    def __init__(
        self, *, prompt_tokens: int, max_tokens: int, choices: int = 1, longest_token: int = 1 << 16, logprobs: int = 0
    ) -> None:
        """`max_tokens` bounds all choices together, as the request states it.

        `longest_token`: characters that a token stands for at most; `logprobs`: how many were asked for each token.
        """
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self._longest_token = longest_token
        self._logprobs = logprobs
        self._characters = 0
        self._logprob_bytes = 0
        self._pauses = 0
        self._due = (0, 0)
        self.stage = Stage.SENT
        self.ids: tuple[list[int], ...] = tuple([] for _ in range(choices))
        self.texts: tuple[list[str], ...] = tuple([] for _ in range(choices))

    def __repr__(self) -> str:
        return f"Progress({self.stage.value}, {self.generated} of {self.max_tokens} tokens)"

    @property
    def generated(self) -> int:
        """Tokens that have come, over all choices."""
        return sum(map(len, self.ids))

    @property
    def output_hash(self) -> bytes:
        """What the receipt must state: the hash over all token ids, choice by choice."""
        return output_hash([token for ids in self.ids for token in ids])

    def accepted(self, message: Accepted) -> None:
        """The node took the request and says what it counted."""
        if self.stage is not Stage.SENT:
            raise _refused("the node accepted the request twice")
        if message.prompt_tokens != self.prompt_tokens:
            raise _refused(
                f"the node counts {message.prompt_tokens} prompt tokens, the base's tokenizer {self.prompt_tokens}"
            )
        self.stage = Stage.ACCEPTED

    def tokens(self, message: Tokens) -> Piece:
        """More tokens of one choice."""
        if self.stage is not Stage.ACCEPTED:
            raise _refused("tokens came before the request was accepted, or after its end")
        if message.choice >= len(self.ids):
            raise _refused("tokens came for a choice that was not asked for")
        ids = self.ids[message.choice]
        if message.start != len(ids):
            raise _refused("tokens were lost or repeated")
        if self.generated + len(message.token_ids) > self.max_tokens:
            raise _refused("more tokens came than were asked for")
        ids.extend(message.token_ids)
        self._characters += len(message.text)
        self._logprob_bytes += len(message.logprobs)
        if self._characters > self.generated * self._longest_token + MARGIN:
            raise _refused("more text came than the tokens can stand for")
        if message.logprobs and not self._logprobs:
            raise _refused("log-probabilities came that were not asked for")
        if self._logprob_bytes > self.generated * self._logprobs * LOGPROB_BYTES + MARGIN:
            raise _refused("more log-probabilities came than were asked for")
        self.texts[message.choice].append(message.text)
        return Piece(message.choice, message.text, message.token_ids, message.logprobs)

    def paused(self, message: Paused) -> tuple[int, int]:
        """The node waits for a voucher: the cumulative tokens and compute that it asks for."""
        if self.stage is not Stage.ACCEPTED:
            raise _refused("the node paused what it had not accepted")
        due = message.cumulative_tokens, int.from_bytes(message.cumulative_compute, "big")
        if due <= self._due:
            self._pauses += 1
            if self._pauses > PAUSES:
                raise _refused("the node pauses again and again for the same")
        self._due = max(due, self._due)
        return due

    def done(self, message: Done) -> bytes:
        """The end: the packed receipt. A node may end at once what it had finished before."""
        if self.stage is Stage.DONE:
            raise _refused("the node ended the request twice")
        self.stage = Stage.DONE
        return message.receipt


def _refused(reason: str) -> OpenLoraError:
    return OpenLoraError(ErrorCode.RECEIPT_INVALID, f"{reason}: nothing more is paid for it")
