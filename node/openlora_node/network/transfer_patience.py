"""How long a source of an artifact may take: it is given time for what it brings, and only so much ahead. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MIN_RATE = 128 << 10
"""Bytes a second: half a chunk, what a line of 1 Mbit/s carries."""
SLACK_S = 15.0


@dataclass(frozen=True)
class FetchOptions:
    """How patient a fetch is. Times in seconds."""

    sources: int = 6
    """Fetched from at once."""
    open_s: float = 15.0
    answer_s: float = 20.0
    """Longest wait for the next message of a source."""
    attempts: int = 4
    """Times that a source is tried which was lost or asked us to wait."""
    first_wait_s: float = 0.2
    longest_wait_s: float = 30.0
    min_rate: float = MIN_RATE
    """Bytes a second. A source that brings less gives its place to one that waits for it."""
    slack_s: float = SLACK_S
    """How far a source may fall behind that."""
    whole_s: float = 180.0
    """The whole fetch may take so long, and what its missing bytes take at `min_rate`."""


class Patience:
    """With one source: it ends when what came, at `rate` bytes a second, falls `slack_s` behind the clock.

    Bytes buy time, but never more than `slack_s` from now: who was fast once cannot live on it.
    """

    def __init__(self, rate: float, slack_s: float, now: float) -> None:
        """`now`: seconds of any steady clock."""
        self._rate = rate
        self._slack_s = slack_s
        self.until = now + slack_s
        """When it ends, if nothing comes before."""

    def brought(self, size: int, now: float) -> None:
        """So many bytes came that were wanted and proven."""
        self.until = min(max(self.until, now) + size / self._rate, now + self._slack_s)
