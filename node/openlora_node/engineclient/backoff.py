"""How long to wait before an engine that died is started again, and when to give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S, LONGEST_S = 1.0, 60.0
STEADY_S = 60.0
"""An engine that served so long before it died is started as if it were the first time."""
HOPELESS = frozenset({2, 3, 7})
"""Exit codes of `openlora engine` that another start cannot change: flags, configuration, and what does not fit."""


@dataclass(frozen=True)
class Backoff:
    """What is known of the starts so far."""

    failures: int = 0

    def after(self, served_s: float) -> Backoff:
        """What is known once an engine has died that served for so many seconds (0: it never did)."""
        return Backoff(1 if served_s >= STEADY_S else self.failures + 1)

    @property
    def wait_s(self) -> float:
        """Seconds to wait before the next start."""
        doublings = min(max(self.failures - 1, 0), 16)
        return min(FIRST_S * 2**doublings, LONGEST_S) if self.failures else 0.0


def is_hopeless(exit_code: int) -> bool:
    """Whether starting again would end the same way."""
    return exit_code in HOPELESS
