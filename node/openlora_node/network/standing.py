"""What one asker has experienced of each node: how often it delivered, what it turned out not to hold. Pure.

Old experience fades, so a node that failed is tried again; a node that broke its word is not for long.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError

HALF_LIFE_S = 600.0
PRIOR = 2.0
"""Good outcomes credited to a stranger: one failure halves nobody's chances."""
MAX_NODES = 4096
MAX_LACKS = 8192
LACK_S = 30.0
"""For how long a node is not asked again for an adapter that it did not find."""
LONGEST_BUSY_S = 30.0
PICK_LIFE_S = 900.0
"""A pick of which nothing was reported counts as in flight for so long."""


class Outcome(Enum):
    """How an attempt at a node ended."""

    COMPLETED = "completed"
    BUSY = "busy"
    REFUSED = "refused"
    """For a reason of the asker's: its funds, its request, its access."""
    FAILED = "failed"
    """It answered with an error of its own making."""
    UNREACHABLE = "unreachable"
    """There was no way to it, or it was lost while it worked."""
    NO_ADAPTER = "no adapter"
    """It answered ADAPTER_NOT_FOUND. That its filter had promised the adapter is for Candidates to find out."""
    BROKEN_PROMISE = "broken promise"
    """The same, and its filter held the adapter. One in 256 such answers is the filter's own error."""
    LIED = "lied"
    """What it sent contradicts what it signed or what arrived."""


WEIGHT = {
    Outcome.FAILED: 1.0,
    Outcome.UNREACHABLE: 3.0,
    Outcome.NO_ADAPTER: 0.5,
    Outcome.BROKEN_PROMISE: 3.0,
    Outcome.LIED: 20.0,
}
"""Failures that an outcome counts as."""
OF_CODE = {
    ErrorCode.BUSY: Outcome.BUSY,
    ErrorCode.DRAINING: Outcome.BUSY,
    ErrorCode.RATE_LIMITED: Outcome.BUSY,
    ErrorCode.TOO_MANY_NONCES: Outcome.BUSY,
    ErrorCode.ADAPTER_NOT_FOUND: Outcome.NO_ADAPTER,
    ErrorCode.NODE_LOST: Outcome.UNREACHABLE,
    ErrorCode.NOT_FOUND: Outcome.UNREACHABLE,
    ErrorCode.MODEL_NOT_FOUND: Outcome.FAILED,
    ErrorCode.ENGINE_UNAVAILABLE: Outcome.FAILED,
    ErrorCode.ENGINE_FAILED: Outcome.FAILED,
    ErrorCode.CHAIN_FAILED: Outcome.FAILED,
    ErrorCode.WRONG_NODE: Outcome.FAILED,
    ErrorCode.INTERNAL: Outcome.FAILED,
    ErrorCode.RECEIPT_INVALID: Outcome.LIED,
}


def outcome_of(error: OpenLoraError) -> Outcome:
    """How an attempt ended that raised this. A ProtocolError is the asker's own finding of a broken protocol."""
    return Outcome.LIED if isinstance(error, ProtocolError) else OF_CODE.get(error.code, Outcome.REFUSED)


@dataclass
class _Record:
    good: float = PRIOR
    bad: float = 0.0
    at: float = 0.0
    busy_until: float = 0.0
    picks: tuple[float, ...] = ()


class Standing:
    """Times are the caller's clock, in seconds. Nodes least heard of are forgotten first."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._max_nodes = max_nodes
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._lacks: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def success(self, node: bytes, now: float) -> float:
        """Share of attempts that it completed, between 0 and 1, recent ones counting more; 1 for a stranger."""
        record = self._records.get(node)
        if record is None:
            return 1.0
        fade = _fade(now - record.at)
        good = PRIOR + (record.good - PRIOR) * fade
        return good / (good + record.bad * fade)

    def is_busy(self, node: bytes, now: float) -> bool:
        """Whether it said BUSY and the time it named is not over."""
        record = self._records.get(node)
        return record is not None and record.busy_until > now

    def in_flight(self, node: bytes, now: float) -> int:
        """Picks of which nothing was reported yet."""
        record = self._records.get(node)
        return sum(at > now - PICK_LIFE_S for at in record.picks) if record else 0

    def lacks(self, node: bytes, adapter: bytes, now: float) -> bool:
        """Whether it answered a moment ago that it does not find this adapter."""
        return self._lacks.get((node, adapter), -math.inf) > now

    def picked(self, node: bytes, now: float) -> None:
        """An attempt begins."""
        record = self._record(node, now)
        record.picks = (*[at for at in record.picks if at > now - PICK_LIFE_S], now)

    def report(self, node: bytes, outcome: Outcome, now: float, retry_after_s: float = 1.0) -> None:
        """An attempt ended. `retry_after_s` counts with BUSY."""
        record = self._record(node, now)
        record.picks = record.picks[1:]
        if outcome is Outcome.BUSY:
            record.busy_until = now + min(max(0.0, retry_after_s), LONGEST_BUSY_S)
            return
        if outcome is Outcome.COMPLETED:
            record.good += 1.0
            record.busy_until = 0.0
        record.bad += WEIGHT.get(outcome, 0.0)

    def lacked(self, node: bytes, adapters: frozenset[bytes], now: float) -> None:
        """It did not find one of these adapters."""
        for adapter in adapters:
            self._lacks[node, adapter] = now + LACK_S
            self._lacks.move_to_end((node, adapter))
        while len(self._lacks) > MAX_LACKS:
            self._lacks.popitem(last=False)

    def _record(self, node: bytes, now: float) -> _Record:
        record = self._records.setdefault(node, _Record(at=now))
        self._records.move_to_end(node)
        if len(self._records) > self._max_nodes:
            self._records.popitem(last=False)
        fade = _fade(now - record.at)
        record.good = PRIOR + (record.good - PRIOR) * fade
        record.bad *= fade
        record.at = now
        return record


def _fade(seconds: float) -> float:
    return math.exp2(-max(0.0, seconds) / HALF_LIFE_S)
