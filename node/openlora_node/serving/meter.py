"""How fast tokens and responses come, over the last seconds. The caller brings the time."""

from __future__ import annotations

WINDOW_S = 10.0


class Meter:
    """Events a second over the window before this one and what has passed of this one."""

    def __init__(self) -> None:
        self._since = 0.0
        self._count = 0
        self._before = 0

    def add(self, now: float, count: int) -> None:
        """Count events."""
        self._turn(now)
        self._count += count

    def rate(self, now: float) -> float:
        """Events a second."""
        self._turn(now)
        passed = now - self._since
        return (self._before * (1 - passed / WINDOW_S) + self._count) / WINDOW_S

    def _turn(self, now: float) -> None:
        passed = now - self._since
        if passed >= WINDOW_S:
            self._before = self._count if passed < 2 * WINDOW_S else 0
            self._count = 0
            self._since = now - passed % WINDOW_S if passed < 2 * WINDOW_S else now
