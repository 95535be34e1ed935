"""How a part of the node is doing, as one value that every room reports and the control API shows."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How well a service works, best first but for the last, which says nothing yet."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    INITIALIZING = "initializing"


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """One service's state. `reason` says what is wrong and what to do, empty when up; `since` is in unix seconds."""

    name: str
    level: Level
    reason: str = ""
    since: int = 0

    @property
    def works(self) -> bool:
        """Whether it does its work, even if not all of it."""
        return self.level in {Level.UP, Level.DEGRADED}
