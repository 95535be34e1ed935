"""What 5,000 registered adapters cost in memory: the resident size of two processes, one that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil

from .adapters import QV_R8
from .figure import Bench, Outcome, Result, Target
from .ours import OurEngine
from .workloads import closed_batch

NUM_REGISTERED = 5_000
HOST_CACHE = 256 << 20
ADAPTERS_USED = 600  # of 0.94 MB each: more than twice what the host cache takes
BATCH = 200
ROOT = Path(__file__).parents[2]


def memory(bench: Bench) -> Outcome:
    """Both processes serve the same requests; one spreads them over 600 of 5,000 adapters."""
    adapters = bench.adapters(QV_R8)
    adapters.names(NUM_REGISTERED)
    bench.say(f"  {NUM_REGISTERED:,} adapters written")
    outcome = Outcome()
    sizes = {}
    for label, folder in (("base", ""), ("5,000 adapters", str(adapters.folder))):
        command = [sys.executable, "-m", "benchmarks.engine.memory", folder]
        answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.splitlines()[-1])
        sizes[label] = answer["rss"]
        outcome.samples[f"{label}: resident, MB"] = [answer["rss"] / 1e6]
        outcome.settings[label] = f"{answer['registered']} registered, {answer['loads']} loads"
        bench.say(f"  {label:<44} {answer['rss'] / 1e6:10.0f} MB ({outcome.settings[label]})")
    above = (sizes["5,000 adapters"] - sizes["base"] - HOST_CACHE) / 1e6
    outcome.settings["host cache"] = f"{HOST_CACHE >> 20} MiB"
    outcome.results = [
        Result("memory with 5,000 adapters above base and host cache", above, Target(100, at_most=True), "MB")
    ]
    return outcome


def serve(folder: Path | None) -> dict[str, int]:
    """Serve the requests of this figure in this process; its size afterwards."""
    with closing(OurEngine(folder, host_cache=HOST_CACHE)) as ours:
        registered = ours.num_registered
        names = sorted(path.name for path in folder.iterdir())[:ADAPTERS_USED] if folder else ()
        for begin in range(0, ADAPTERS_USED, BATCH):
            ours.run(closed_batch(names[begin : begin + BATCH], requests=BATCH, prompt=4, output=2, seed=begin))
        return {"rss": psutil.Process().memory_info().rss, "registered": registered, "loads": sum(ours.loads.values())}


if __name__ == "__main__":
    print(json.dumps(serve(Path(sys.argv[1]) if sys.argv[1] else None)))
