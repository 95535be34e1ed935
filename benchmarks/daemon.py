"""What an idle node costs: memory, processor, and how soon after its start everything but the engine works.

Run `python benchmarks/daemon.py [--seconds N]`. A registered node on an embedded chain, started twice: the second start
finds its journal, its registry snapshot and its base model's id. There is no engine and nobody asks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from openlora_chain.deployment import load_deployment  # noqa: E402
from openlora_chain.rpc import Rpc  # noqa: E402
from support.chain_world import ChainWorld, running_devnet  # noqa: E402
from support.daemon_world import NodeHome, NodeProcess, running_node  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
LIMITS = {"memory MiB": 200.0, "one core %": 2.0, "ready s": 5.0}


@dataclass
class Cost:
    """What one start came to."""

    ready_s: float
    cpu_s: float
    """Processor time until then: what a quiet machine would take."""
    memory_mib: float = 0.0
    core_percent: float = 0.0


async def main(seconds: float) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="openlora-bench-") as folder,
        running_devnet(Path(folder) / "chain") as chain,
    ):
        root = Path(folder)
        model = root / "model"
        model.mkdir()
        for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", EMPTY)):
            (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        async with Rpc([chain[0]]) as rpc:
            world = ChainWorld(rpc, load_deployment(chain[1]))
            home = await NodeHome.make(
                root / "node", "bench", *chain,
                engine={"spawn": False, "model": str(model), "socket": str(root / "none.sock")},
                chain={"poll_interval": "2s"}, api={"health_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"},
            )  # fmt: skip
            await world.fund(home.wallet.address)
            home.node = await world.register_node(home.wallet)
            await start(home, 0)
            cost = await start(home, seconds)
    print(f"{'':14}measured   limit")
    rows = {"memory MiB": cost.memory_mib, "one core %": cost.core_percent, "ready s": cost.ready_s}
    for name, value in rows.items():
        print(f"{name:14}{value:8.2f}{LIMITS[name]:8.1f}")
    print(f"of the start's {cost.ready_s:.1f} s the node used {cost.cpu_s:.1f} s of a processor")


EMPTY = (8).to_bytes(8, "little") + b"{}      "


async def start(home: NodeHome, seconds: float) -> Cost:
    """Start, wait until only the engine is missing, watch for `seconds`, stop."""
    began = time.monotonic()
    async with running_node(home, WATCHDOG_USEC="300000") as node:
        await node.until(lambda line: line.startswith("not serving: engine is down"))
        cost = Cost(time.monotonic() - began, processor(node))
        if seconds:
            await asyncio.sleep(5)
            before, at = processor(node), time.monotonic()
            await asyncio.sleep(seconds)
            cost.core_percent = 100 * (processor(node) - before) / (time.monotonic() - at)
            cost.memory_mib = memory(node)
        await node.stop()
    return cost


def processor(node: NodeProcess) -> float:
    """Seconds of processor time that the node has used."""
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory(node: NodeProcess) -> float:
    """Resident memory in MiB."""
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    asyncio.run(main(parser.parse_args().seconds))
