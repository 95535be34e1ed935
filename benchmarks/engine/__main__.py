"""`python -m benchmarks.engine [--figure NAME]… [--quick] [--save]`: print figures beside their targets."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
for library in ("torch", "torchao", "transformers"):  # before their import: that is when they are chatty
    logging.getLogger(library).setLevel(logging.ERROR)

import openlora_kernels  # noqa: E402, F401 - before torch: it settles how long idle threads spin

from . import closed, cold, grid, many, memory, report, rivals  # noqa: E402
from .figure import Bench, Outcome  # noqa: E402
from .machine import NOISY, watched  # noqa: E402

FIGURES: dict[str, Callable[[Bench], Outcome]] = {
    "closed": closed.closed,
    "stream": closed.stream,
    "prefill": closed.prefill,
    "zipf": many.zipf,
    "working-set": many.working_set,
    "cold": cold.cold,
    "memory": memory.memory,
    "stalls": closed.stalls,
    "peers": rivals.peers,
    "tuning": rivals.tuning,
    "grid": grid.grid,
}
DEFAULT = ("closed", "stream", "prefill", "zipf", "working-set", "cold", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for. Exit code 0 whether or not targets are met: a benchmark reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--figure", action="append", choices=FIGURES, help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--quick", action="store_true", help="one round of each, smaller workloads")
    parser.add_argument("--whole", action="store_true", help="the whole grid, not each axis through one point")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--adapters", type=Path, help="folder for generated adapters, kept; default: a temporary one")
    parser.add_argument("--save", action="store_true", help=f"write {report.FOLDER.name}/engine.* in docs")
    parser.add_argument("--json", action="store_true", help="print all samples as JSON instead of the table")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children and files go
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="openlora-bench-") as temporary:
        bench = Bench(
            options.adapters or Path(temporary), 1 if options.quick else options.repeats, options.quick, options.whole
        )
        _warn_of_noise(bench)
        for name in options.figure or DEFAULT:
            about = " ".join((FIGURES[name].__doc__ or "").split())
            bench.say(f"{name}: {about}")
            outcomes[name] = outcome = FIGURES[name](bench)
            if options.save:
                report.save(name, about, outcome)
            if not options.json:
                print(name, *map(report.line_of, outcome.results), sep="\n", flush=True)
    if options.save:
        report.write_pages()
    if options.json:
        print(report.as_json(outcomes))
    return 0


def _warn_of_noise(bench: Bench) -> None:
    with watched() as watch:
        time.sleep(1.0)
    if watch.others > NOISY:
        bench.say(f"warning: other processes take {watch.others:.0%} of this machine; the figures will suffer")


if __name__ == "__main__":
    sys.exit(main())
