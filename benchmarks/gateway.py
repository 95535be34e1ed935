"""Short paid requests a second through one gateway, by customers at once, and which process the time goes to.

`python benchmarks/gateway.py`: two nodes with tiny engines, a gateway and a devnet as processes; each customer asks for
two tokens, again and again. Processor time is each process's own, user and system, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.e2e_village import MODEL, Village, village

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
WARM_UP = 50
TICKS = os.sysconf("SC_CLK_TCK")


async def processes(place: Village) -> dict[str, list[int]]:
    """Process ids by what they are."""
    assert place.gateway is not None
    engines = [await operator.engine() for operator in place.operators]
    nodes = [operator.running.process.pid for operator in place.operators]
    return {"gateway": [place.gateway.pid], "nodes": nodes, "engines": engines, "customers": [os.getpid()]}


def seconds(pids: list[int]) -> float:
    """Processor time of these processes so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / TICKS


async def ask(session: aiohttp.ClientSession, url: str, count: int, customers: int) -> int:
    """`count` requests by so many customers, one after the other each; how many were refused."""
    left, refused = count, 0

    async def customer() -> None:
        nonlocal left, refused
        while left > 0:
            left -= 1
            async with session.post(f"{url}/v1/chat/completions", json=BODY) as answer:
                await answer.read()
                refused += answer.status != 200

    async with asyncio.TaskGroup() as group:
        for _ in range(customers):
            group.create_task(customer())
    return refused


async def main(count: int, at_once: list[int]) -> None:
    """Print requests a second, and milliseconds of processor time a request by process."""
    with tempfile.TemporaryDirectory(prefix="openlora-gw-") as folder:
        async with village(Path(folder)) as place:
            headers = {"Authorization": f"Bearer {place.token}"}
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
                await ask(session, place.gateway_url, WARM_UP, 4)
                pids = await processes(place)
                print(f"{'customers':>9}{'requests/s':>12}{'refused':>9}   processor ms a request", flush=True)
                for customers in at_once:
                    before = {name: seconds(each) for name, each in pids.items()}
                    began = time.perf_counter()
                    refused = await ask(session, place.gateway_url, count, customers)
                    rate = count / (time.perf_counter() - began)
                    used = {name: 1000 * (seconds(each) - before[name]) / count for name, each in pids.items()}
                    told = ", ".join(f"{name} {value:.1f}" for name, value in used.items())
                    print(f"{customers:>9}{rate:>12.1f}{refused:>9}   {told}", flush=True)
    print(f"{count} requests each, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--customers", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    asyncio.run(main(arguments.count, arguments.customers))
