"""How many requests may be under way: of one payer, and in all before their first token. No I/O."""

from __future__ import annotations

from collections import Counter

from ..protocol.errors import ErrorCode, OpenLoraError

LEAST_WAIT_MS = 250
MOST_WAIT_MS = 10_000


class Capacity:
    """Places at the desk. A payer's place is held until its closing voucher came or is late."""

    def __init__(self, queue: int, per_payer: int) -> None:
        self._queue = queue
        self._per_payer = per_payer
        self._payers: Counter[bytes] = Counter()
        self.waiting = 0
        self.running = 0
        self.closing = 0
        self._wait_ms = 1_000.0

    def enter(self, payer: bytes) -> None:
        """Take a place in the queue. Raises BUSY."""
        if self._payers[payer] >= self._per_payer:
            raise OpenLoraError(
                ErrorCode.BUSY,
                f"{self._per_payer} requests of this payer are under way: wait for one to end and pay for it",
                retry_after_ms=self.retry_after_ms,
            )
        if self.waiting >= self._queue:
            raise OpenLoraError(ErrorCode.BUSY, "the queue is full", retry_after_ms=self.retry_after_ms)
        self._payers[payer] += 1
        self.waiting += 1

    @property
    def retry_after_ms(self) -> int:
        """How long requests waited for their first token of late."""
        return int(min(MOST_WAIT_MS, max(LEAST_WAIT_MS, self._wait_ms)))

    def started(self, waited_s: float) -> None:
        """A request has its first token."""
        self.waiting -= 1
        self.running += 1
        self._wait_ms += (1_000 * waited_s - self._wait_ms) / 8

    def ended(self, was_started: bool, closes: bool) -> None:
        """It generates no more; with `closes` it awaits its closing voucher."""
        if was_started:
            self.running -= 1
        else:
            self.waiting -= 1
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
