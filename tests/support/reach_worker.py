"""Networks in a process of its own, perhaps in another network namespace, steered by JSON lines.

A line in is `{"id", "do": <method of Worker>, …arguments}`, a line out `{"id", "result"}` or `{"id", "error"}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.host import HostOptions
from openlora_node.network.reach import ReachOptions
from openlora_node.network.service import Life, Network
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.messages import INFER, Cancel, Tokens
from support.network_adverts import DOMAIN
from support.network_peers import Registry, fresh_secret

ANSWER_S = 120.0
"""The first answer waits for the process to import everything."""
CLONE_NEWNET = 0x40000000


class Placed(Network):
    """A network whose thread enters a namespace first."""

    def __init__(self, space: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._space = space

    @contextlib.asynccontextmanager
    async def _body(self) -> AsyncIterator[Life]:
        if self._space:
            with Path(f"/run/netns/{self._space}").open() as file:
                assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
        async with super()._body() as life:
            yield life


class Worker:
    """The networks of this process by name."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.known_after: dict[str, float] = {}
        """Seconds from a network's start until it knew how it is reached."""

    async def start(
        self,
        name: str,
        bootstrap: tuple[str, ...] = (),
        relay: str = "use",
        announce: tuple[str, ...] = (),
        space: str = "",
    ) -> dict[str, Any]:
        """A network that echoes, and where it is. `space`: another namespace than the process's."""
        listen = "/ip4/0.0.0.0/tcp/4001"
        self.networks[name] = network = Placed(
            space,
            fresh_secret(),
            HostOptions(
                listen=(listen,), dial_timeout=10.0, handshake_timeout=10.0, frozen_after=5.0, ping_interval=1.0
            ),
            Registry(),
            adverts=AdvertOptions(DOMAIN),
            directory=DirectoryOptions(DOMAIN, bootstrap=tuple(bootstrap), enough_peers=5),
            serves=(INFER,),
            reach=ReachOptions(relay=relay, announce=tuple(announce)),  # type: ignore[arg-type]
        )
        await network.start()
        self.tasks.append(asyncio.create_task(self._echo(network)))
        self.tasks.append(asyncio.create_task(self._clock(name, network, time.monotonic())))
        return {"peer": await network.peer_id(), "addresses": await network.addresses()}

    async def stop(self, name: str) -> None:
        """End one as a crash would look to others: its connections go."""
        await self.networks.pop(name).stop()

    async def state(self, name: str) -> dict[str, Any]:
        """Its reach."""
        state = await self.networks[name].reach()
        assert state is not None
        return {**asdict(state), "reach": state.reach.name.lower(), "known_after": self.known_after.get(name)}

    async def until(self, name: str, within: float = 80.0, holds: str = "", **wanted: Any) -> dict[str, Any]:
        """Wait for a state, for lists by their length; `holds` is a relay. `seconds` says how long it took."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while True:
                state = await self.state(name)
                values = {key: len(v) if isinstance(v := state[key], list | tuple) else v for key in wanted}
                if values == wanted and holds in ("", *state["relays"]):
                    return {**state, "seconds": round(time.monotonic() - began, 2)}
                await asyncio.sleep(0.05)

    async def connect(self, name: str, peer: str, addresses: list[str]) -> dict[str, Any]:
        """A connection by one of the addresses."""
        began = time.monotonic()
        await self.networks[name].connect(peer, addresses)
        return {"seconds": round(time.monotonic() - began, 3), **await self.way(name, peer)}

    async def way(self, name: str, peer: str) -> dict[str, Any]:
        """How a peer is connected."""

        async def look(life: Any) -> dict[str, Any]:
            return {
                "direct": life.host.connections.is_direct(peer),
                "relayed": len(life.host.connections.relayed(peer)),
                "ip": life.host.connections.ip_of(peer),
                "relays": [str(a) for c in life.host.connections.relayed(peer) for a in c.get_transport_addresses()],
            }

        return await self.networks[name]._bridge.call(look)

    async def until_direct(self, name: str, peer: str, within: float = 60.0) -> dict[str, Any]:
        """Wait until a peer is connected without a relay."""
        async with asyncio.timeout(within):
            while not (way := await self.way(name, peer))["direct"]:
                await asyncio.sleep(0.05)
        return way

    async def serving(self, name: str) -> bool:
        """Whether a network holds a part of the directory."""

        async def look(life: Any) -> bool:
            return str(life.directory._table.mode.value) == "SERVER"

        return await self.networks[name]._bridge.call(look)

    async def ask(self, name: str, peer: str, times: int = 1) -> dict[str, Any]:
        """Requests and their answers on one stream; milliseconds each."""
        session = await self.networks[name].open(peer, INFER)
        took = []
        for number in range(1, times + 1):
            began = time.monotonic()
            await session.send(Cancel(id=number))
            async with asyncio.timeout(15):
                answer = await session.receive()
            took.append(round(1000 * (time.monotonic() - began), 2))
            assert isinstance(answer, Tokens), answer
            assert answer.id == number
        await session.close()
        return {"ms": sorted(took)}

    async def _clock(self, name: str, network: Network, began: float) -> None:
        with contextlib.suppress(OpenLoraError):
            while (state := await network.reach(decided=True)) is None or state.reach.name == "UNKNOWN":
                await asyncio.sleep(0.2)
            self.known_after[name] = round(time.monotonic() - began, 2)

    async def _echo(self, network: Network) -> None:
        while True:
            session = await network.accept()
            self.tasks.append(asyncio.create_task(self._answer(session)))

    async def _answer(self, session: Any) -> None:
        with contextlib.suppress(OpenLoraError):
            while (message := await session.receive()) is not None:
                await session.send(Tokens(id=message.id, start=0, token_ids=(1,), text="yes"))
            await session.close()


async def main() -> None:
    """Serve lines until standard input ends."""
    worker, loop = Worker(), asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        answer: dict[str, Any] = {"id": request.pop("id")}
        try:
            answer["result"] = await getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer, default=str), flush=True)
    for network in worker.networks.values():
        await network.stop()


@dataclass
class Remote:
    """The process, from the test's side."""

    process: subprocess.Popen[bytes]
    buffer: bytes = b""
    asked: int = 0

    def call(self, do: str, **arguments: Any) -> Any:
        """A call and its result. Answers to calls that were given up are passed over."""
        assert self.process.stdin is not None
        self.asked += 1
        self.process.stdin.write(json.dumps({"id": self.asked, "do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + ANSWER_S
        while (answer := json.loads(self._line(deadline)))["id"] != self.asked:
            continue
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the worker did not answer in time"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the worker ended"
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line


@contextlib.contextmanager
def worker(space: str | None = None) -> Iterator[Remote]:
    """A worker, in a namespace if one is named."""
    tests = Path(__file__).parents[1]
    inner = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "import asyncio; from support.reach_worker import main; asyncio.run(main())",
    ]
    command = ["ip", "netns", "exec", space, *inner] if space else inner
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tests, env={**os.environ, "PATH": path}
    )
    try:
        yield Remote(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
