"""A relay's books: who has reserved, which circuits run, what is refused. Pure: the caller brings the time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class RelayLimits:
    """What a relay gives away. Times in seconds."""

    reservations: int = 128
    reservations_per_ip: int = 8
    reservation_s: int = 3600
    circuits: int = 256
    circuits_per_peer: int = 16
    """Of one reserving peer; of one dialling peer as well."""
    circuit_s: int = 3600
    circuit_bytes: int = 1 << 28
    """Each way."""


class RelayTable:
    """Reservations and circuits within the limits."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._reserved: dict[str, tuple[str, float]] = {}
        self._circuits: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        return f"RelayTable({len(self._reserved)} reservations, {self.circuits} circuits)"

    @property
    def reservations(self) -> int:
        """Reservations held, the expired not yet forgotten included."""
        return len(self._reserved)

    @property
    def circuits(self) -> int:
        """Circuits that run."""
        return self._circuits.total()

    def reserve(self, peer: str, ip: str, now: float) -> float | None:
        """Reserve for `peer`, or renew; until when, or None when the relay or the peer's IP has no more."""
        self.expire(now)
        others = [place for known, (place, _) in self._reserved.items() if known != peer]
        if len(others) >= self._limits.reservations or others.count(ip) >= self._limits.reservations_per_ip:
            return None
        until = now + self._limits.reservation_s
        self._reserved[peer] = (ip, until)
        return until

    def holds(self, peer: str, now: float) -> bool:
        """Whether `peer` has a reservation now."""
        return peer in self._reserved and self._reserved[peer][1] > now

    def release(self, peer: str) -> None:
        """Forget a reservation: its peer has left. Safe to repeat."""
        self._reserved.pop(peer, None)

    def expire(self, now: float) -> None:
        """Forget reservations whose time is over."""
        for peer in [peer for peer, (_, until) in self._reserved.items() if until <= now]:
            del self._reserved[peer]

    def peers(self) -> tuple[str, ...]:
        """Who has reserved."""
        return tuple(self._reserved)

    def open(self, source: str, target: str) -> bool:
        """Count a circuit in; False, and not counted, when there are too many."""
        of_source = sum(n for (s, _), n in self._circuits.items() if s == source)
        of_target = sum(n for (_, t), n in self._circuits.items() if t == target)
        if self.circuits >= self._limits.circuits or max(of_source, of_target) >= self._limits.circuits_per_peer:
            return False
        self._circuits[source, target] += 1
        return True

    def close(self, source: str, target: str) -> None:
        """Count a circuit out."""
        self._circuits[source, target] -= 1
        if self._circuits[source, target] <= 0:
            del self._circuits[source, target]
