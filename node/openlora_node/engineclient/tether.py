"""Runs a command that dies with its parent: `python tether.py PARENT COMMAND…`. Standard library alone.

The kernel kills the command when the thread that started it ends, however it ends (prctl PR_SET_PDEATHSIG, Linux): no
engine is left behind by a daemon that was killed -9. The wish outlives exec. Being the one process here that can start
anew, the command also volunteers when memory runs out.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
OOM_SCORE_ADJUSTMENT = 500


def main() -> None:
    """Become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUSTMENT), encoding="ascii")
    if os.getppid() != parent:
        sys.exit(1)  # it died before the wish was made
    os.execv(command[0], command)  # noqa: S606 -- no shell reads it


if __name__ == "__main__":
    main()
