"""What every engine looks like to a figure: it serves a workload and tells when each token came."""

from __future__ import annotations

from typing import Protocol

from .trace import Run
from .workloads import Workload


class Driver(Protocol):
    """An engine that is loaded and ready. `name` is how tables call it."""

    name: str

    def run(self, workload: Workload) -> Run:
        """Serve one workload from its first arrival to its last token."""

    def close(self) -> None:
        """Give memory and processes back."""
