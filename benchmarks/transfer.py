"""Fetches one large adapter over loopback, sender and fetcher in a process each: MB/s, and where the time goes.

    python benchmarks/transfer.py [--size MB] [--sources N] [--json]

`network` is the CPU time of the thread that runs libp2p; hashing, proofs and disk work are in `workers`. The machine's
load is printed beside the result, because both processes and everything else share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import openlora_node.network  # noqa: E402, F401
from openlora_node.artifacts import ArtifactStore  # noqa: E402
from support.artifacts_folders import ABOUT, adapter_folder  # noqa: E402
from support.artifacts_peers import node, open_store  # noqa: E402

MB = 1_000_000


def cpu_times() -> dict[str, float]:
    """CPU seconds of this process by what its threads are for."""
    ticks = os.sysconf("SC_CLK_TCK")
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    spent = {"network": 0.0, "loop": 0.0, "workers": 0.0}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / ticks
        name = names.get(int(task.name), "")
        kind = "network" if name == "p2p" else "loop" if name == "MainThread" else "workers"
        spent[kind] += seconds
    return spent


async def send(root: Path, size: int) -> None:
    """The sending process: publishes, prints where it is, serves until its input ends."""
    with open_store(root / "store", 8 << 30) as store:
        artifact = await store.add_folder(adapter_folder(root / "in", size), "adapter", ABOUT)
        async with node(store) as sender:
            (address,) = await sender.network.addresses()
            print(json.dumps({"artifact": artifact.hex(), "peer": sender.id, "address": address}), flush=True)
            before = cpu_times()
            await asyncio.to_thread(sys.stdin.read)
            after = cpu_times()
            print(json.dumps({key: round(after[key] - before[key], 2) for key in after}), flush=True)


async def fetch(root: Path, offers: list[dict[str, str]]) -> dict[str, object]:
    """The fetching process."""
    with ArtifactStore.open(root / "store", 8 << 30, keep_free=0) as store:
        async with node(store) as fetcher:
            for offer in offers:
                await fetcher.network.connect(offer["peer"], [offer["address"]])
            await asyncio.sleep(1.0)  # identify and the first exchange of adverts are over
            peers = [offer["peer"] for offer in offers]
            artifact = bytes.fromhex(offers[0]["artifact"])

            async def sources(_: bytes):  # type: ignore[no-untyped-def]
                for peer in peers:
                    yield peer

            before, began = cpu_times(), time.perf_counter()
            folder = await fetcher.fetcher.fetch(artifact, sources)
            seconds = time.perf_counter() - began
            after = cpu_times()
            size = sum(path.stat().st_size for path in folder.iterdir())
            return {
                "megabytes": round(size / MB, 1),
                "seconds": round(seconds, 2),
                "megabytes_per_second": round(size / MB / seconds, 1),
                "fetcher_cpu_s": {key: round(after[key] - before[key], 2) for key in after},
            }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=160, help="megabytes of weights")
    parser.add_argument("--sources", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        asyncio.run(send(Path(given.send), given.size * MB))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name)
        senders, offers = [], []
        for number in range(given.sources):
            folder = root / f"sender{number}"
            folder.mkdir()
            command = [sys.executable, __file__, "--send", str(folder), "--size", str(given.size)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            senders.append(process)
        for process in senders:
            assert process.stdout is not None
            offers.append(json.loads(process.stdout.readline()))
        result = asyncio.run(fetch(root, offers))
        spent = []
        for process in senders:
            out, _ = process.communicate()
            spent.append(json.loads(out))
    result |= {"sources": given.sources, "senders_cpu_s": spent, "load_before": round(load, 1), "cores": os.cpu_count()}
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['megabytes']} MB in {result['seconds']} s: {result['megabytes_per_second']} MB/s")
    print(f"from {given.sources} source(s), load {result['load_before']} on {result['cores']} cores before the run")
    print(f"CPU seconds, fetcher {result['fetcher_cpu_s']}, senders {spent}")


if __name__ == "__main__":
    main()
