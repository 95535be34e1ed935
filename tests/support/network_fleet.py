"""Nodes with scripted engines, each a process forked from one that imported everything: a test may kill them.

Each writes what it did with each request to a file of its own that outlives it: A accepted, D done, P paid.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora_node.network.adverts import OwnState
from openlora_node.network.inference import Inbound
from openlora_node.protocol.messages import Accepted, Infer, Pay, Settled
from support.network_adverts import ONLINE
from support.network_infer import DONE, ServingNode, make_network
from support.network_peers import CALM, Registry, secret

TOKENS = 4


@dataclass(frozen=True)
class Worker:
    """One node process."""

    pid: int
    node: bytes
    peer: str
    address: str
    log: Path

    def entries(self) -> list[tuple[str, bytes]]:
        """What it did, with the nonce of each request."""
        return [(line[0], bytes.fromhex(line[2:])) for line in self.log.read_text().splitlines()]


class ScriptedNode:
    """Accepts each request, sends the first token at once if the body says `early`, then waits for SIGUSR1."""

    def __init__(self, log: Path) -> None:
        self._file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._go = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._go.set)

    def note(self, what: str, nonce: bytes) -> None:
        """One line, in one write."""
        os.write(self._file, f"{what} {nonce.hex()}\n".encode())

    async def handle(self, inbound: Inbound) -> None:
        """One request."""
        assert isinstance(inbound.first, Infer)
        nonce = inbound.first.request
        self.note("A", nonce)
        await inbound.send(Accepted(id=1, prompt_tokens=1))
        place = 0
        if inbound.first.body == b"early":
            await inbound.tokens(0, 0, (0,), "x")
            place = 1
        await self._go.wait()
        for each in range(place, TOKENS):
            await inbound.tokens(0, each, (each,), "x")
        self.note("D", nonce)
        await inbound.send(DONE)
        if isinstance(await inbound.receive(), Pay):
            self.note("P", nonce)
            await inbound.send(Settled(id=1, cumulative_tokens=TOKENS))


async def _node(index: int, count: int, log: Path) -> None:
    registry = Registry()
    for each in range(count):
        registry.register(secret(each))
    network, node = make_network(registry, CALM, key=secret(index))
    state: OwnState = ONLINE
    network.advertise(state)
    await network.start()
    scripted = ScriptedNode(log)
    print(os.getpid(), node.hex(), await network.peer_id(), (await network.addresses())[0], log, flush=True)
    await ServingNode(network, node, scripted.handle).serve()


def main(count: int, directory: str) -> None:
    """Fork `count` nodes; end them when our input does."""
    children = []
    for index in range(count):
        pid = os.fork()
        if not pid:
            devnull = os.open(os.devnull, os.O_RDONLY)
            os.dup2(devnull, 0)
            asyncio.run(_node(index, count, Path(directory) / f"{index}.log"))
            os._exit(0)
        children.append(pid)
    sys.stdin.read()
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in children:
        os.waitpid(pid, 0)


@contextmanager
def fleet(count: int, directory: Path) -> Iterator[list[Worker]]:
    """That many node processes."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"from support.network_fleet import main; main({count}, {str(directory)!r})",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            workers = []
            for _ in range(count):
                pid, node, peer, address, log = process.stdout.readline().split()
                workers.append(Worker(int(pid), bytes.fromhex(node), peer, address, Path(log)))
            yield workers
        finally:
            process.stdin.close()
