"""The machine that a figure was taken on, and how much of it other processes took meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

NOISY = 0.05
"""Share of the machine that others may take before a run counts as disturbed."""


@dataclass
class Watch:
    """What others took during one run: share of all cores, stolen time of the host included."""

    others: float = 0.0


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure what processes that are neither ours nor our children's take while the block runs."""
    watch, began = Watch(), time.perf_counter()
    busy, own = _busy_s(), _own_s()
    yield watch
    seconds = (time.perf_counter() - began) * (os.cpu_count() or 1)
    watch.others = max(0.0, (_busy_s() - busy) - (_own_s() - own)) / seconds


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _own_s() -> float:
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def describe() -> dict[str, str]:
    """Processor, memory, software: what a reader needs to judge the figures."""
    from openlora_kernels import native_status

    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {
        "processor": f"{model or platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")),
        "kernels": native_status(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
