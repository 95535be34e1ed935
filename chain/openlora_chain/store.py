"""What the outbox and the log follower remember, and the interfaces they remember it through. Knows no web3, no disk.

The journal implements both stores, so that a voucher and the intent to redeem it commit in one transaction. Every
method is one durable transaction: when it returns, the change survives a kill −9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MAX_KIND_LENGTH = 32
MAX_SUBJECT_LENGTH = 128


class IntentState(StrEnum):
    """Where an intent stands. The first four are open: the outbox still works on them."""

    QUEUED = "queued"
    """Wanted; holds no nonce."""
    SIGNED = "signed"
    """Holds a nonce and at least one signed attempt on disk; nobody may have seen it yet."""
    SENT = "sent"
    """A node has taken an attempt."""
    MINED = "mined"
    """An attempt stands in a block that is not deep enough yet."""
    FINAL = "final"
    """Executed with success, at depth."""
    FAILED = "failed"
    """Refused for good by a contract error that was decoded."""
    CANCELLED = "cancelled"
    """Withdrawn by the operator: never sent, or its nonce was spent on nothing."""

    @property
    def is_open(self) -> bool:
        """Whether the outbox still works on it."""
        return self not in CLOSED


CLOSED = frozenset({IntentState.FINAL, IntentState.FAILED, IntentState.CANCELLED})
HOLDS_NONCE = frozenset({IntentState.SIGNED, IntentState.SENT, IntentState.MINED})


class Order(StrEnum):
    """What the operator asked for; carried out at the outbox's next step."""

    BUMP = "bump"
    CANCEL = "cancel"
    RESEND = "resend"


def intent_id(kind: str, subject: bytes) -> bytes:
    """The 32-byte id of the one intent of this kind and subject."""
    return hashlib.sha256(kind.encode() + b"\0" + subject).digest()


@dataclass(frozen=True, slots=True)
class NewIntent:
    """A transaction that somebody wants sent, once. `subject` names what it is about, so that wanting it twice is one.

    `to` and `sender` are 20 bytes, `value` is wei; `gas_limit` None means: estimate when sending.
    """

    kind: str
    subject: bytes
    chain_id: int
    sender: bytes
    to: bytes
    data: bytes = b""
    value: int = 0
    gas_limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.kind) <= MAX_KIND_LENGTH or not 0 < len(self.subject) <= MAX_SUBJECT_LENGTH:
            raise ValueError(f"kind has 1 to {MAX_KIND_LENGTH} characters, subject 1 to {MAX_SUBJECT_LENGTH} bytes")
        if len(self.sender) != 20 or len(self.to) != 20:
            raise ValueError("sender and to are addresses of exactly 20 bytes")
        if self.chain_id <= 0 or not 0 <= self.value < 1 << 256:
            raise ValueError("chain_id is positive, value is a uint256")

    @property
    def id(self) -> bytes:
        """32 bytes, from kind and subject alone."""
        return intent_id(self.kind, self.subject)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed transaction of an intent, stored before it is sent. Attempts of one nonce replace each other.

    `signed_at` is unix seconds, `signed_block` the head's number then, `gas` the gas limit, fees are wei per gas.
    """

    nonce: int
    hash: bytes
    raw: bytes
    gas: int
    max_fee: int
    priority_fee: int
    signed_at: int
    signed_block: int
    cancels: bool = False
    """Spends the nonce on an empty transfer to the sender itself."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """The block in which an attempt was found."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """A stored intent. `attempts` are all ever signed, oldest first, those of abandoned nonces included."""

    request: NewIntent
    seq: int
    """Position in the queue: smaller goes first. Unique, never reused."""
    state: IntentState
    created_at: int
    updated_at: int
    nonce: int | None = None
    attempts: tuple[Attempt, ...] = ()
    inclusion: Inclusion | None = None
    order: Order | None = None
    note: str | None = None
    """Why it waits or failed, for people."""
    reverts: int = field(default=0)
    """How often an attempt was mined and reverted without a reason that is final."""

    @property
    def id(self) -> bytes:
        """The request's id."""
        return self.request.id

    @property
    def live_attempts(self) -> tuple[Attempt, ...]:
        """The attempts of the nonce held now, oldest first."""
        return tuple(attempt for attempt in self.attempts if attempt.nonce == self.nonce)

    @property
    def newest(self) -> Attempt:
        """The newest attempt of the nonce held now."""
        return self.live_attempts[-1]


class OutboxStore(Protocol):
    """Durable intents. A method that finds its intent in another state than it needs raises ChainError INTENT_STATE."""

    async def submit(self, new: NewIntent, now: int) -> Intent:
        """Store the intent as QUEUED, or return the one of the same kind and subject.

        Raises ChainError INTENT_CONFLICT where that one has other contents, OUTBOX_FULL beyond the store's bound.
        """
        ...

    async def find(self, identity: bytes) -> Intent | None:
        """The intent with this id."""
        ...

    async def open_intents(self, sender: bytes, chain_id: int) -> Sequence[Intent]:
        """All intents of this key that are open, by `seq`, and closed ones that carry an order."""
        ...

    async def recent(self, limit: int) -> Sequence[Intent]:
        """Intents of every state, newest first."""
        ...

    async def record_attempt(self, identity: bytes, attempt: Attempt) -> None:
        """QUEUED, SIGNED or SENT → SIGNED, holding the attempt's nonce. Refuses a nonce that another one holds."""
        ...

    async def mark_sent(self, identity: bytes, now: int) -> None:
        """SIGNED → SENT; SENT stays."""
        ...

    async def mark_mined(self, identity: bytes, inclusion: Inclusion, now: int) -> None:
        """SIGNED, SENT or MINED → MINED in this block."""
        ...

    async def mark_reorged(self, identity: bytes, now: int) -> None:
        """MINED → SENT: the block is gone."""
        ...

    async def requeue(self, identity: bytes, note: str, now: int, *, reverted: bool = False) -> None:
        """SIGNED, SENT, MINED, FAILED or CANCELLED → QUEUED without a nonce; `reverted` counts one more revert."""
        ...

    async def close(self, identity: bytes, state: IntentState, note: str | None, now: int) -> None:
        """Open → FINAL, FAILED or CANCELLED; clears an order."""
        ...

    async def set_order(self, identity: bytes, order: Order | None) -> None:
        """Keep what the operator asked for, or clear it once done."""
        ...

    async def set_note(self, identity: bytes, note: str | None) -> None:
        """Keep why it waits."""
        ...


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block's number and 32-byte hash."""

    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One event log of the canonical chain. `address` is 20 bytes, topics are 32 bytes each."""

    block: BlockRef
    index: int
    tx_hash: bytes
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


class LogStore(Protocol):
    """What followers have read, each under its name: enough to go on after a restart and to undo after a reorg."""

    async def checkpoints(self, follower: str) -> Sequence[BlockRef]:
        """Blocks up to which everything was read, newest first."""
        ...

    async def unseen(self, follower: str, logs: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Those of the logs that were not appended before, in the order given."""
        ...

    async def above(self, follower: str, number: int) -> Sequence[LogRecord]:
        """Appended logs of blocks above this height, newest first."""
        ...

    async def append(self, follower: str, logs: Sequence[LogRecord], upto: BlockRef, keep_from: int) -> None:
        """Remember the logs and the checkpoint together; forget what lies below `keep_from`."""
        ...

    async def roll_back(self, follower: str, to: int) -> None:
        """Forget checkpoints and logs above this height; all of them for -1."""
        ...
