"""One response as everyone who follows it sees it: what has happened so far, and a bell for what happens next. No I/O.

It outlives the stream that asked for it: a payer whose connection broke sends the same request again and is attached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..attribution import Output
from ..engineclient.values import Chunk
from ..journal import LedgerKey, StoredReceipt
from ..openai import split_logprobs
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.pricing import Tally
from .ledgers import Amounts
from .signal import Signal

PIECE_OVERHEAD = 200
MAX_LOGPROB_BYTES = 1 << 17
"""Of one piece; a message takes twice as much."""
MAX_FINISH_REASON = 32


class Stop(Enum):
    """Why a response ends before the engine is done with it."""

    CANCELLED = "cancelled"
    """The payer said so."""
    UNPAID = "voucher_late"
    """No voucher came while output was paused."""
    LOST = "reader_lost"
    """Nobody reads it any more."""
    DRAINING = "draining"
    """The node stops: it ends without a receipt."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one choice; `start` is the place of the first in it."""

    choice: int
    start: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: bytes

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return PIECE_OVERHEAD + 8 * len(self.token_ids) + 2 * len(self.text) + len(self.logprobs)


@dataclass(frozen=True)
class Finished:
    """The end of a response: its receipt is committed."""

    stored: StoredReceipt
    finish_reason: str
    after: Tally
    """The ledger's tally after it."""
    at: int
    """Unix seconds."""
    evidence: bytes = b""
    """The leaves behind its receipt's roots, packed."""


class Response:
    """State that one task changes and any number of followers read."""

    def __init__(self, digest: Digest, key: LedgerKey) -> None:
        self.digest = digest
        self.key = key
        self.changed = Signal()
        self.prompt_tokens: int | None = None
        """Set once the request is admitted."""
        self.pieces: list[Piece] = []
        self.due: Amounts | None = None
        """What a voucher must reach before output goes on; None while it flows."""
        self.held = 0
        """Tokens that are generated and wait for a voucher."""
        self.pauses = 0
        """How often a voucher was asked for."""
        self.finished: Finished | None = None
        self.error: OpenLoraError | None = None
        self.stored: StoredReceipt | None = None
        """The receipt of a request whose text is gone: there is nothing to follow."""
        self.answered = False
        """A voucher came on one of its streams after the receipt."""
        self.closed = False
        """The closing voucher came, or is no longer awaited."""
        self.covered_tokens = 0
        self.rightful = False
        """Its signer signs for its payer."""
        self.in_engine = False
        self.stop_reason: Stop | None = None
        self.size = 0
        self.generated = 0
        self._starts: dict[int, int] = {}
        self._tokens: dict[int, list[int]] = {}
        self._texts: dict[int, str] = {}
        self._reasons: dict[int, str] = {}
        self._followers = 0
        self._read = 0
        self._abort: Callable[[], object] | None = None
        self._orphan: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "failed" if self.error else "finished" if self.finished else f"{self.generated} tokens"
        return f"Response({self.digest.hex()[:12]}, {state})"

    # the task's side

    def admit(self, prompt_tokens: int) -> None:
        """It is admitted and queued."""
        self.prompt_tokens = prompt_tokens
        self.changed.fire()

    def add(self, chunk: Chunk) -> None:
        """The engine gave tokens. Text without a token waits for the choice's next one."""
        if chunk.finish_reason is not None:
            self._reasons[chunk.choice] = chunk.finish_reason
        text = self._texts.pop(chunk.choice, "") + chunk.text
        if not chunk.token_ids:
            if text:
                self._texts[chunk.choice] = text
            return
        start = self._starts.get(chunk.choice, 0)
        self._starts[chunk.choice] = start + len(chunk.token_ids)
        self._tokens.setdefault(chunk.choice, []).extend(chunk.token_ids)
        # An engine whose reader lagged gives many tokens at once: more log-probabilities than a message takes.
        at = 0
        for count, logprobs in split_logprobs(chunk.logprobs, len(chunk.token_ids), MAX_LOGPROB_BYTES):
            piece = Piece(chunk.choice, start + at, chunk.token_ids[at : at + count], text, logprobs)
            self.pieces.append(piece)
            self.size += piece.size
            at, text = at + count, ""
        self.generated += len(chunk.token_ids)
        self.changed.fire()

    def pause(self, due: Amounts | None) -> None:
        """Output waits for a voucher, or flows again."""
        if due is not None or self.due is not None:
            self.due = due
            self.pauses += due is not None
            self.changed.fire()

    def finish(self, finished: Finished) -> None:
        """The receipt is committed."""
        self.finished = finished
        self.size += len(finished.evidence)
        self.changed.fire()

    def fail(self, error: OpenLoraError) -> None:
        """It ends without a receipt; the first error counts."""
        if self.finished is None and self.error is None:
            self.error = error
            self.changed.fire()

    def gone(self, stored: StoredReceipt) -> None:
        """It ended long ago: the receipt is all that is left."""
        self.stored = stored
        self.changed.fire()

    def close(self, covered_tokens: int) -> None:
        """No closing voucher is awaited any more; the newest held covers so many tokens of the ledger."""
        self.closed = True
        self.covered_tokens = covered_tokens
        self.changed.fire()

    def output(self, choices: int) -> Output:
        """What was generated, by choice."""
        indices = range(max(choices, *(index + 1 for index in self._tokens), 0) if self._tokens else choices)
        return Output(
            tuple(tuple(self._tokens.get(index, ())) for index in indices),
            tuple(self._reasons.get(index, "") for index in indices),
        )

    def finish_reason(self, choices: int) -> str:
        """For the last message: one reason, or one a choice joined by commas where they differ and fit."""
        if self.stop_reason is not None:
            return self.stop_reason.value
        reasons = [self._reasons.get(index, "stop") for index in range(choices)]
        joined = reasons[0] if len(set(reasons)) == 1 else ",".join(reasons)
        return joined if len(joined) <= MAX_FINISH_REASON else "mixed"

    @property
    def lead(self) -> int:
        """Tokens that nobody who follows has read yet; 0 while nobody follows."""
        return self.generated - self._read if self._followers else 0

    def on_stop(self, abort: Callable[[], object] | None) -> None:
        """How its work is interrupted."""
        self._abort = abort

    # the followers' side

    def follow(self) -> None:
        """Somebody reads it."""
        self._followers += 1
        if self._orphan is not None:
            self._orphan.cancel()
            self._orphan = None

    def leave(self, orphan_s: float) -> None:
        """Somebody stopped reading it; when the last did, it ends after `orphan_s` seconds unless someone comes."""
        self._followers -= 1
        over = self.finished is not None or self.error is not None or self.stored is not None
        if self._followers == 0 and not over:
            self._orphan = asyncio.get_running_loop().call_later(orphan_s, self.stop, Stop.LOST)
        self.changed.fire()

    def has_read(self, tokens: int) -> None:
        """A follower has passed on this many tokens."""
        if tokens > self._read:
            self._read = tokens
            self.changed.fire()

    def stop(self, reason: Stop) -> None:
        """End it early. Safe to repeat; the first reason counts."""
        if self.stop_reason is None and self.finished is None and self.error is None:
            self.stop_reason = reason
            if self._abort is not None:
                self._abort()

    def mark_stopped(self, reason: Stop) -> None:
        """Its own task ends it."""
        self.stop_reason = self.stop_reason or reason

    def forget_timer(self) -> None:
        """The response is over: nobody needs to be waited for."""
        if self._orphan is not None:
            self._orphan.cancel()
            self._orphan = None


def stopped_error(reason: Stop) -> OpenLoraError:
    """What a follower hears of a response that ended without a receipt."""
    return OpenLoraError(ErrorCode.DRAINING if reason is Stop.DRAINING else ErrorCode.CANCELLED)
