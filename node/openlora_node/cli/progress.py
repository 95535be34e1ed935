"""Progress of work that may take more than a second: a bar on a terminal's standard error, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 0.5
"""Work that is done sooner shows no bar."""


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be called, on any thread, with bytes done and bytes in all."""
    if not sys.stderr.isatty():
        yield lambda done, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=None)
    began = time.monotonic()
    shown = False

    def tell(done: int, size: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - began > PATIENCE_S:
            shown = True
            bar.start()
        bar.update(task, completed=done, total=size)

    try:
        yield tell
    finally:
        if shown:
            bar.stop()


def size_text(size: int) -> str:
    """Bytes for people: `160.0 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
