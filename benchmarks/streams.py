"""What a request over libp2p costs beside a direct call of the same engine: node and payer in two processes.

Run `python benchmarks/streams.py [--requests N] [--profile]`. The engine is scripted and answers at once, so every
millisecond is the way: streams, frames, threads. A request is `infer`, `accepted`, one `tokens`, `done`, `pay`,
`settled`, with messages of real sizes. CPU is what both processes used, for a request.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.host import HostOptions
from openlora_node.network.identity import Peer
from openlora_node.network.inference import Inbound, InferClient, serve_session
from openlora_node.network.service import Network
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.messages import INFER, Accepted, Done, Infer, InferMessage, Pay, Settled, Tokens

DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x5e" * 20)
NODE_SECRET, PAYER_SECRET = b"\x01" * 32, b"\x02" * 32
NODE = b"\x07" * 32
WAYS = 16
BODY = b'{"messages":[{"role":"user","content":"' + 300 * b"x" + b'"}],"max_tokens":1}'
REQUEST = Infer(id=1, request=bytes(373), pipeline=bytes(200), body=BODY, voucher=bytes(261))
PAY = Pay(id=1, voucher=bytes(261))
DONE = Done(id=1, receipt=bytes(557), finish_reason="stop", salt=bytes(32))


class OneNode:
    """A registry that knows the node."""

    def node_of(self, address: bytes) -> bytes | None:
        """The node id of an address."""
        return NODE if address == LocalSigner(NODE_SECRET).address else None

    def key_of(self, node: bytes) -> bytes | None:
        """The address of the node's key."""
        return LocalSigner(NODE_SECRET).address if node == NODE else None

    def endpoints(self) -> tuple[str, ...]:
        """What is published on chain."""
        return ()


@dataclass(frozen=True)
class Figures:
    """Milliseconds, and CPU of both processes in milliseconds a request."""

    what: str
    p50_ms: float
    p99_ms: float
    per_second: float
    cpu_ms: float


async def engine(tokens: int) -> AsyncIterator[tuple[int, str]]:
    """The scripted engine."""
    for place in range(tokens):
        yield place, "x"


async def handle(inbound: Inbound) -> None:
    """A node's handler without checks or books."""
    await inbound.send(Accepted(id=1, prompt_tokens=9))
    start = 0
    async for token, text in engine(1):
        await inbound.tokens(0, start, (token,), text)
        start += 1
    await inbound.send(DONE)
    if isinstance(await inbound.receive(), Pay):
        await inbound.send(Settled(id=1, cumulative_tokens=10))


def network(secret: bytes, *, serves: bool) -> Network:
    """A network on loopback."""
    return Network(
        secret,
        HostOptions(listen=("/ip4/127.0.0.1/tcp/0",)),
        OneNode(),
        adverts=AdvertOptions(DOMAIN),
        directory=DirectoryOptions(DOMAIN),
        serves=(INFER,) if serves else (),
    )


async def serve(profile: bool) -> None:
    """The node's process: prints where it is, then answers `cpu` with the seconds it used, until its input ends."""
    node = network(NODE_SECRET, serves=True)
    await node.start()
    print(await node.peer_id(), (await node.addresses())[0], flush=True)

    async def accept() -> None:
        async with asyncio.TaskGroup() as streams:
            while True:
                streams.create_task(serve_session(await node.accept(), handle))

    profiler = cProfile.Profile(time.thread_time)
    if profile:
        node._bridge.post(lambda _: profiler.enable())
    accepting = asyncio.create_task(accept())
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            print(time.process_time(), flush=True)
    finally:
        accepting.cancel()
        if profile:
            node._bridge.post(lambda _: profiler.disable())
            await node.peer_id()
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
        await node.stop()


async def request(client: InferClient) -> float:
    """One request; seconds to its first token."""
    began, first = time.perf_counter(), 0.0
    async with await client.open(NODE) as exchange:
        await exchange.send(REQUEST)
        message: InferMessage | None = None
        while not isinstance(message, Done):
            message = await exchange.receive()
            if isinstance(message, Tokens) and not first:
                first = time.perf_counter() - began
        await exchange.send(PAY)
        await exchange.receive()
    return first


async def direct() -> float:
    """The same engine without a way; seconds to its first token."""
    began = time.perf_counter()
    async for _ in engine(1):
        break
    return time.perf_counter() - began


async def measure(requests: int, cpu: Callable[[], float], client: InferClient) -> list[Figures]:
    """Direct, one request after the other, and several at once."""
    figures = []
    for what, ways in (("direct call", 0), ("one after the other", 1), (f"{WAYS} at once", WAYS)):
        times: list[float] = []
        began, used = time.perf_counter(), cpu()

        async def lane(count: int, ways: int = ways, times: list[float] = times) -> None:
            for _ in range(count):
                times.append(await (request(client) if ways else direct()))

        await asyncio.gather(*(lane(requests // max(1, ways)) for _ in range(max(1, ways))))
        seconds, cost = time.perf_counter() - began, cpu() - used
        times.sort()
        figures.append(
            Figures(
                what,
                1000 * statistics.median(times),
                1000 * times[len(times) * 99 // 100],
                len(times) / seconds,
                1000 * cost / len(times),
            )
        )
    return figures


async def ask(requests: int, peer: str, address: str, cpu: Callable[[], float]) -> list[Figures]:
    """The payer's process."""
    payer = network(PAYER_SECRET, serves=False)
    await payer.start()

    async def connect_node(_node: bytes) -> Peer:
        return await payer.connect(peer, [address])

    payer.connect_node = connect_node  # type: ignore[method-assign]
    client = InferClient(payer)
    try:
        for _ in range(20):
            await request(client)
        return await measure(requests, cpu, client)
    finally:
        await client.close()
        await payer.stop()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="where the node's network thread spends its CPU time")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        asyncio.run(serve(options.profile))
        return
    command = [sys.executable, str(Path(__file__)), "--node", *(["--profile"] if options.profile else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        ask_node, told = node.stdin, node.stdout
        peer, address = told.readline().split()

        def cpu() -> float:
            ask_node.write("cpu\n")
            ask_node.flush()
            return time.process_time() + float(told.readline())

        try:
            figures = asyncio.run(ask(options.requests, peer, address, cpu))
        finally:
            ask_node.close()
    load = os.getloadavg()[0]
    print(f"{options.requests} requests a row; load of the machine {load:.1f}\n")
    print("| | p50 to first token ms | p99 ms | requests/s | CPU ms a request |")
    print("| --- | --- | --- | --- | --- |")
    for row in figures:
        print(f"| {row.what} | {row.p50_ms:.2f} | {row.p99_ms:.2f} | {row.per_second:,.0f} | {row.cpu_ms:.2f} |")


if __name__ == "__main__":
    main()
