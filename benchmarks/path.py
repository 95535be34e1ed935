"""What the signed, paid way adds to the engine's own first token: gateway, libp2p, node, journals, chain and all.

`python benchmarks/path.py`: two nodes with tiny engines, a gateway and a devnet as processes; requests one after the
other through a stock OpenAI client, and the same straight to an engine's socket. Target: at most 25 ms more at p50.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.e2e_village import MODEL, Village, village

BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "stream": True, "ignore_eos": True}
TARGET_MS = 25.0


async def first_token_ms(session: aiohttp.ClientSession, url: str, model: str, number: int) -> float:
    """Time from sending a request to its first piece of text; reads to the end."""
    began, first = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json={**BODY, "model": model, "seed": number}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not first and line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter()
    assert first, "no text came"
    return 1000 * (first - began)


async def measure(place: Village, count: int) -> dict[str, list[float]]:
    """Alternately, so that both ways meet the same machine."""
    socket = place.operators[0].home.root / "engine.sock"
    found: dict[str, list[float]] = {"engine": [], "paid": []}
    direct = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)))
    paid = aiohttp.ClientSession(headers={"Authorization": f"Bearer {place.token}"})
    async with direct, paid:
        engine_model = (await (await direct.get("http://engine/v1/models")).json())["data"][0]["id"]
        for number in range(-10, count):
            own = await first_token_ms(direct, "http://engine", engine_model, number % 1000)
            whole = await first_token_ms(paid, place.gateway_url, MODEL, number % 1000)
            if number >= 0:
                found["engine"].append(own)
                found["paid"].append(whole)
    return found


async def main(count: int) -> None:
    """Print both and the difference."""
    with tempfile.TemporaryDirectory(prefix="openlora-path-") as folder:
        async with village(Path(folder)) as place:
            found = await measure(place, count)
    print(f"{count} requests, alternating; load {os.getloadavg()[0]:.1f}")
    print(f"{'first token ms':<24}{'p50':>8}{'p95':>8}")
    for name, values in found.items():
        print(f"{name:<24}{statistics.median(values):>8.1f}{statistics.quantiles(values, n=20)[18]:>8.1f}")
    added = statistics.median(found["paid"]) - statistics.median(found["engine"])
    print(f"{'added':<24}{added:>8.1f}        target {TARGET_MS:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    asyncio.run(main(parser.parse_args().count))
