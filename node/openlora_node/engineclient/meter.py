"""How fast the engine generates, as its client sees it: tokens a second while requests run. Pure."""

from __future__ import annotations

import math

HALF_LIFE_S = 20.0
"""Of what was measured, in seconds at work: a changed load shows after some of these, an idle hour changes nothing."""


class TokenMeter:
    """Counts tokens against the time in which at least one request runs; both fade, so that the ratio is recent."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._decay = math.log(2) / half_life_s
        self._running = 0
        self._busy_s = 0.0
        self._tokens = 0.0
        self._at = 0.0

    def begin(self, now: float) -> None:
        """A request begins. `now` is in seconds of any steady clock."""
        self._advance(now)
        self._running += 1

    def end(self, now: float) -> None:
        """A request ended."""
        self._advance(now)
        self._running -= 1

    def count(self, tokens: int, now: float) -> None:
        """Tokens came."""
        self._advance(now)
        self._tokens += tokens

    def rate(self, now: float) -> float:
        """Tokens a second; 0 before anything was measured."""
        self._advance(now)
        return self._tokens / self._busy_s if self._busy_s > 0 else 0.0

    @property
    def running(self) -> int:
        """Requests that this client runs."""
        return self._running

    def _advance(self, now: float) -> None:
        passed, self._at = now - self._at, now
        if self._running == 0 or passed <= 0:
            return
        fade = math.exp(-self._decay * passed)
        self._tokens *= fade
        # The integral of fading seconds, so that a steady rate reads as itself.
        self._busy_s = self._busy_s * fade + (1 - fade) / self._decay
