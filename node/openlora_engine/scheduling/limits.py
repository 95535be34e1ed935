"""Bounds of one scheduler: seats, tokens a step, queue lengths, and the refusal when a queue is full."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import Code, EngineError

UNMEASURED_RETRY_S = 1.0
RETRY_BOUNDS_S = (0.1, 60.0)


@dataclass(frozen=True)
class SchedulerConfig:
    """The part of the engine's configuration that scheduling follows. Raises CONFIG_INVALID naming the flag.

    Every decode row needs a token of the budget, so `max_num_batched_tokens` is at least `max_num_seqs`.
    """

    max_num_seqs: int = 32
    """Sequences that run at once."""
    max_num_batched_tokens: int = 512
    """Tokens computed in one step, decode and prefill together."""
    max_queue: int = 1024
    """Sequences that may wait or be paused beyond the free seats; each of a request's `n` choices is one."""
    max_queue_per_tenant: int = 256
    max_wait_s: float = 10.0
    """Age at which a request goes before fairness, and at which an adapter without a slot gets one drained."""
    aged_every: int = 4
    """Of this many admissions one goes to the oldest aged request, the others to the least served tenant. Were it all
    of them, an overload that ages every request would turn fairness into first come, first served."""

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_queue", "max_queue_per_tenant", "aged_every"):
            if getattr(self, name) < 1:
                raise _invalid(name, "must be at least 1")
        if not 0 < self.max_wait_s < math.inf:
            raise _invalid("max_wait_s", "must be above 0 and finite")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise _invalid("max_num_batched_tokens", f"must be at least --max-num-seqs ({self.max_num_seqs})")

    def check_queue(self, num_new: int, queued: int, limit: int, drain_rate: float, whose: str) -> None:
        """Raise BUSY if `num_new` sequences do not fit beside `queued` ones into `limit`.

        `drain_rate` is how many sequences a second leave this queue, 0 where it was not measured: the wait until those
        ahead are gone is what the client is told.
        """
        if queued + num_new > limit:
            low, high = RETRY_BOUNDS_S
            wait = min(high, max(low, queued / drain_rate)) if drain_rate > 0 else UNMEASURED_RETRY_S
            raise EngineError(
                Code.BUSY, f"{whose} {queued} sequences waiting; try again in {wait:.1f} s", retry_after_s=wait
            )


def _invalid(name: str, problem: str) -> EngineError:
    return EngineError(Code.CONFIG_INVALID, f"--{name.replace('_', '-')} {problem}", param=name)
