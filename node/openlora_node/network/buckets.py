"""Token buckets, one a key, in a table that cannot grow without end. Pure: the caller brings the time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Allowance:
    """`rate` tokens a second, at most `burst` saved up."""

    rate: float
    burst: float


class Buckets(Generic[K]):
    """Who may do how much. A key that was forgotten starts full, so only the idlest are forgotten."""

    def __init__(self, allowance: Allowance, max_keys: int = 4096) -> None:
        self._allowance = allowance
        self._max_keys = max_keys
        self._levels: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: K, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens of `key`'s bucket; False, and nothing taken, when it holds fewer."""
        level = self.level(key, now)
        allowed = level >= cost
        self._levels[key] = (level - cost if allowed else level, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        return allowed

    def level(self, key: K, now: float) -> float:
        """Tokens in the bucket."""
        level, since = self._levels.get(key, (self._allowance.burst, now))
        return min(self._allowance.burst, level + max(0.0, now - since) * self._allowance.rate)
