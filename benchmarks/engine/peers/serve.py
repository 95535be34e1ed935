"""The line protocol of a peer's process: settings in, then workloads in and traces out. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from ..trace import Run
from ..workloads import Workload


@dataclass(frozen=True)
class PeerSetup:
    """What a peer's process is started with: the model, each adapter's file or folder, its own settings."""

    model: str
    adapters: Mapping[str, str]
    settings: Mapping[str, Any]

    def to_json(self) -> str:
        """The first line into the process."""
        return json.dumps({"model": self.model, "adapters": dict(self.adapters), "settings": dict(self.settings)})


def serve(start: Callable[[PeerSetup], Callable[[Workload], Run]]) -> None:
    """Read the set-up, start the engine, answer every workload with its run, until the input ends.

    The engine may print what it likes: its standard output is sent to standard error, ours keeps a copy of the pipe.
    """
    answers: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = PeerSetup(**json.loads(sys.stdin.readline()))
    began = time.perf_counter()
    run = start(setup)
    print(json.dumps({"load_s": time.perf_counter() - began}), file=answers, flush=True)
    for line in sys.stdin:
        print(run(Workload.from_json(line)).to_json(), file=answers, flush=True)
