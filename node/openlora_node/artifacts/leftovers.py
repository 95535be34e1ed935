"""What lies in the store's folders and nobody works on: downloads at rest, remains of crashes."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from .eviction import Candidate
from .layout import Layout, allocated, lock_folder, newest, parse_folder_name


class Leftovers:
    """Finds and removes them. Whoever works on a folder, in any process, locks it. Methods block, and raise OSError."""

    def __init__(self, layout: Layout, clock: Callable[[], float]) -> None:
        """`clock` in unix seconds."""
        self._layout = layout
        self._clock = clock

    def idle(self, fetched: Container[bytes]) -> list[Candidate]:
        """Downloads that nobody works on. `fetched`: those of this process, which are not looked at."""
        found = []
        for entry in os.scandir(self._layout.partials):
            artifact = parse_folder_name(entry.name)
            if artifact is not None and artifact not in fetched:
                folder = Path(entry.path)
                with suppress(OSError):
                    lock = lock_folder(folder)
                    if lock is not None:
                        os.close(lock)
                        found.append(Candidate(artifact, allocated(folder), newest(folder), partial=True))
        return found

    def give_up(self, artifact: bytes) -> bool:
        """Remove a download; False when somebody works on it."""
        folder = self._layout.partial(artifact)
        lock = lock_folder(folder)
        if lock is None:
            return False
        self._layout.discard(folder)
        os.close(lock)
        return True

    def sweep(self, parent: Path, life: float) -> int:
        """Delete what lies in a folder for longer than `life` seconds and nobody locks; the bytes freed."""
        freed = 0
        for entry in os.scandir(parent):
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False):
                self._layout.discard(path)
                continue
            lock = lock_folder(path) if self._clock() - newest(path) > life or life == 0 else None
            if lock is not None:
                freed += allocated(path)
                self._layout.discard(path)
                os.close(lock)
        return freed
