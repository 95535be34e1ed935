"""How many requests may be under way: of one payer, and of one base before their first token. No I/O."""

from __future__ import annotations

from collections import Counter

from ..protocol.errors import ErrorCode, OpenLoraError

LEAST_WAIT_MS = 250
MOST_WAIT_MS = 10_000


class Capacity:
    """Places at the desk. A payer's place is held until its closing voucher came or is late.

    Each base has a queue of its own: an engine that hangs fills no other's.
    """

    def __init__(self, queue: int, per_payer: int) -> None:
        self._queue = queue
        self._per_payer = per_payer
        self._payers: Counter[bytes] = Counter()
        self._waiting: Counter[bytes] = Counter()
        self.running = 0
        self.closing = 0
        self._wait_ms = 1_000.0

    @property
    def waiting(self) -> int:
        """Requests without a first token, of all bases."""
        return self._waiting.total()

    def enter(self, payer: bytes, base: bytes) -> None:
        """Take a place in a base's queue; only bases that are served come here. Raises BUSY."""
        if self._payers[payer] >= self._per_payer:
            raise OpenLoraError(
                ErrorCode.BUSY,
                f"{self._per_payer} requests of this payer are under way: wait for one to end and pay for it",
                retry_after_ms=self.retry_after_ms,
            )
        if self._waiting[base] >= self._queue:
            raise OpenLoraError(ErrorCode.BUSY, "the queue is full", retry_after_ms=self.retry_after_ms)
        self._payers[payer] += 1
        self._waiting[base] += 1

    @property
    def retry_after_ms(self) -> int:
        """How long requests waited for their first token of late."""
        return int(min(MOST_WAIT_MS, max(LEAST_WAIT_MS, self._wait_ms)))

    def started(self, base: bytes, waited_s: float) -> None:
        """A request has its first token."""
        self._waiting[base] -= 1
        self.running += 1
        self._wait_ms += (1_000 * waited_s - self._wait_ms) / 8

    def ended(self, base: bytes, was_started: bool, closes: bool) -> None:
        """It generates no more; with `closes` it awaits its closing voucher."""
        if was_started:
            self.running -= 1
        else:
            self._waiting[base] -= 1
        self.closing += closes

    def leave(self, payer: bytes, closes: bool) -> None:
        """The payer's place is free."""
        self.closing -= closes
        self._payers[payer] -= 1
        if not self._payers[payer]:
            del self._payers[payer]

    def of(self, payer: bytes) -> int:
        """Places that a payer holds."""
        return self._payers[payer]
