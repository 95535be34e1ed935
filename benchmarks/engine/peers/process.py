"""A peer as a driver: its process started, fed workloads, and at rest between them so that it takes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from ..guard import Guard
from ..trace import Run
from ..workloads import Workload
from .serve import PeerSetup

ROOT = Path(__file__).parents[3]
HOME = Path(os.environ.get("PEERS", ROOT / "build" / "peers"))

ANSWER_TIMEOUT_S = 300.0
"""For a start or a workload; ended by force afterwards."""


class PeerMissing(Exception):
    """The peer is not installed: `make bench-peers` does it."""


class PeerFailed(Exception):
    """The peer's process ended, or did not answer in time; the message has the end of its log."""


class PeerProcess:
    """A running peer. The process group rests (SIGSTOP) except while it serves a workload."""

    def __init__(self, name: str, setup: PeerSetup, *, peer: str, environment: Mapping[str, str] | None = None) -> None:
        python = HOME / peer / "bin" / "python"
        if not (HOME / peer / "setup.stamp").exists():
            raise PeerMissing(f"{peer} is not installed: make bench-peers")
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.engine.peers.{peer}_worker"],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._guard = Guard(self._process.pid)
        self.load_s: float = json.loads(self._ask(setup.to_json()))["load_s"]
        self._signal(signal.SIGSTOP)

    def run(self, workload: Workload) -> Run:
        """Serve one workload. Raises PeerFailed."""
        self._signal(signal.SIGCONT)
        run = Run.from_json(self._ask(workload.to_json()))
        self._signal(signal.SIGSTOP)
        return run

    def close(self) -> None:
        """End the process and whatever it started."""
        self._guard.dismiss()
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, self._signal, (signal.SIGKILL,))
        watchdog.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            if answer := self._process.stdout.readline():
                return answer
        except BrokenPipeError:
            pass
        finally:
            watchdog.cancel()
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")[-4000:]
        self.close()
        raise PeerFailed(f"{self.name} ended:\n{log}")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
