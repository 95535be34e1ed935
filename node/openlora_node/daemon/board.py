"""Every service's health in one place, each with the time since which it holds; the node in one line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ..protocol.errors import OpenLoraError
from ..protocol.health import Level, ServiceHealth

ESSENTIAL = frozenset({"registration", "journal", "chain", "engine", "serving", "network"})
"""Without one of these nothing is served."""
LOW_DISK_BYTES = 2 << 30
FULL_DISK_BYTES = 256 << 20
MAX_SKEW_S = 60
"""Between this machine's clock and the newest block's, forwards: requests live by the clock."""
OLD_BLOCK_S = 600
"""A chain without a block for so long says nothing of the clock."""

Probe = Callable[[], ServiceHealth]


class Board:
    """Probes by name, asked when somebody looks. A probe must not block; one that fails is a service that is down."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._probes: dict[str, Probe] = {}
        self._held: dict[str, ServiceHealth] = {}

    def add(self, name: str, probe: Probe) -> None:
        """Show this service, in the place of one of the same name if there is one."""
        self._probes[name] = probe

    def services(self) -> tuple[ServiceHealth, ...]:
        """All services as they are now. `since` is when this level began, as far as this board has seen."""
        return tuple(self._look(name) for name in self._probes)

    def service(self, name: str) -> ServiceHealth:
        """One of them; DOWN for an unknown one."""
        return self._look(name) if name in self._probes else ServiceHealth(name, Level.DOWN, "not started")

    def _look(self, name: str) -> ServiceHealth:
        try:
            found = replace(self._probes[name](), name=name)
        except OpenLoraError as error:
            found = ServiceHealth(name, Level.DOWN, error.message)
        except Exception as error:  # noqa: BLE001 - a probe's fault must not take the health page away
            found = ServiceHealth(name, Level.DOWN, f"a fault of ours ({type(error).__name__})")
        held = self._held.get(name)
        since = held.since if held and held.level is found.level else found.since or int(self._clock())
        self._held[name] = replace(found, since=since)
        return self._held[name]


def summary(services: Iterable[ServiceHealth], stopping: str = "") -> str:
    """Serving or why not, in one line."""
    if stopping:
        return f"stopping: {stopping}"
    found = list(services)
    missing = [service for service in found if service.name in ESSENTIAL and not service.works]
    if missing:
        first = missing[0]
        return f"not serving: {first.name} is {first.level.value}{f': {first.reason}' if first.reason else ''}"
    troubled = [service.name for service in found if service.level is not Level.UP]
    return f"serving, with {', '.join(troubled)} impaired" if troubled else "serving"


def disk_health(path: Path) -> ServiceHealth:
    """Free space where the state lies."""
    try:
        status = os.statvfs(path)
    except OSError:
        return ServiceHealth("disk", Level.DOWN, "the data directory is gone: look at its disk")
    free = status.f_bavail * status.f_frsize
    if free < FULL_DISK_BYTES:
        return ServiceHealth("disk", Level.DOWN, f"{free >> 20} MiB free: nothing can be promised; free disk space")
    if free < LOW_DISK_BYTES:
        return ServiceHealth("disk", Level.DEGRADED, f"{free >> 20} MiB free: free disk space")
    return ServiceHealth("disk", Level.UP)


def clock_health(now: float, block_time: int | None) -> ServiceHealth:
    """This machine's clock beside the newest block's (unix seconds; None while no block is known)."""
    if block_time is None:
        return ServiceHealth("clock", Level.INITIALIZING, "no block has told the time yet")
    ahead = block_time - int(now)
    if ahead > MAX_SKEW_S:
        return ServiceHealth("clock", Level.DOWN, f"the clock is {ahead} s behind the chain: set it")
    if -ahead > OLD_BLOCK_S:
        return ServiceHealth(
            "clock", Level.DEGRADED, f"the newest block is {-ahead} s old: the clock runs ahead, or the chain stands"
        )
    return ServiceHealth("clock", Level.UP)
