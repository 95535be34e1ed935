"""Ends a child's process group when this process is gone, however that came. Standard library only."""

from __future__ import annotations

import subprocess

SCRIPT = 'read -r _; kill -s KILL -- "-$1"'
"""Its input ends with us, also by SIGKILL. vLLM's workers outlive their parent otherwise, and spin."""


class Guard:
    """Watches over a process that was started with `start_new_session`."""

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", SCRIPT, "sh", str(pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def dismiss(self) -> None:
        """The process is about to be ended in good order."""
        self._process.kill()
        self._process.communicate()
