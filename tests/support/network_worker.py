"""A host in a process of its own: prints its address, then echoes on the advert protocol until it is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from openlora_node.network.opening import open_host
from openlora_node.network.stream import FramedStream
from openlora_node.protocol.messages import ADVERT, AdvertMessage, Adverts
from support.network_peers import QUICK, Registry, fresh_secret


async def main() -> None:
    """Serve until killed."""
    async with open_host(fresh_secret(), QUICK, Registry()) as host:

        async def echo(stream: FramedStream[AdvertMessage]) -> None:
            while await stream.receive() is not None:
                await stream.send(Adverts(adverts=()))

        host.serve(ADVERT, echo)
        print(host.id, host.addresses()[0], flush=True)
        await trio.sleep_forever()


@contextmanager
def worker() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its peer id and its address."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "import trio; from support.network_worker import main; trio.run(main)",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        peer, address = process.stdout.readline().split()
        yield process, peer, address
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
