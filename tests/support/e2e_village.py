"""Two operators and a payer as processes: `openlora run` twice, each with its engine, and `openlora gateway`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from openai import AsyncOpenAI

from openlora_chain import keystore
from openlora_chain.deployment import load_deployment
from openlora_chain.password import Password
from openlora_chain.rpc import Rpc
from openlora_node.journal import Ledger, Reader
from openlora_node.network.identity import peer_id_of
from openlora_node.protocol.ids import parse_artifact_id
from support.chain_world import ETHER, PAYER, ChainWorld, running_devnet
from support.daemon_world import COMMAND, NodeHome, NodeProcess, running_node, tiny_model

MODEL = "tiny"
WIDE = {
    "in_flight_per_payer": 512, "queue": 512, "signer_rate": "1000/s", "peer_rate": "1000/s", "ip_rate": "10000/s",
    "unpaid_tokens": 16,
}  # fmt: skip
LOOK_S = 0.1


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(look: Any, what: str, seconds: float = 90.0) -> Any:
    """Look again until the answer is true; fails with `what` after so long. For states of other processes."""
    end = asyncio.get_running_loop().time() + seconds
    while not (answer := await look()):
        assert asyncio.get_running_loop().time() < end, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(LOOK_S)
    return answer


@dataclass
class Operator:
    """One node: its files, and its process while it runs."""

    home: NodeHome
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    process: NodeProcess | None = None

    @property
    def node(self) -> bytes:
        """The node id."""
        return self.home.node

    @property
    def running(self) -> NodeProcess:
        """The process; it must run."""
        assert self.process is not None
        return self.process

    async def start(self) -> None:
        """Run until it serves."""
        self.process = await self.stack.enter_async_context(running_node(self.home))
        await self.process.until_serving(180)

    async def kill(self) -> None:
        """kill -9; the engine goes with it."""
        self.running.process.kill()
        await self.stack.aclose()
        self.stack, self.process = AsyncExitStack(), None

    async def engine(self) -> int:
        """The engine's process id."""
        return int((await self.running.ask("/status"))["engine"]["pid"])

    async def busy(self) -> int:
        """Requests that wait or run."""
        serving = (await self.running.ask("/status"))["serving"]
        return int(serving["queue"]) + int(serving["running"])

    def journal(self) -> Reader:
        """What it has written."""
        return Reader(self.home.state / "node.sqlite")

    def ledgers(self) -> list[Ledger]:
        """What the payer owes it and has vouchered."""
        with self.journal() as reader:
            return reader.ledgers(PAYER.address, self.node, 64)


@dataclass
class Village:
    """Everything that runs."""

    world: ChainWorld
    operators: list[Operator]
    folder: Path
    gateway_url: str = ""
    gateway: asyncio.subprocess.Process | None = None
    token: str = ""

    @property
    def state(self) -> Path:
        """The gateway's directory."""
        return self.folder / "gateway" / "devnet" / "gateway"

    def client(self) -> AsyncOpenAI:
        """A stock client at the gateway; it does not retry by itself."""
        return AsyncOpenAI(base_url=f"{self.gateway_url}/v1", api_key=self.token, max_retries=0, timeout=120)

    def operator_of(self, node: str) -> Operator:
        """By node id, 0x-hex."""
        return next(one for one in self.operators if f"0x{one.node.hex()}" == node)

    def payer_ledgers(self) -> list[Ledger]:
        """The payer's own books with every node."""
        with Reader(self.state / "payer.sqlite") as reader:
            return [ledger for one in self.operators for ledger in reader.ledgers(PAYER.address, one.node, 64)]

    async def spend(self) -> dict[str, Any]:
        """The gateway's own account."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{self.gateway_url}/spend") as answer,
        ):
            return await answer.json()  # type: ignore[no-any-return]

    async def start_gateway(self, skew_s: int = 0) -> None:
        """Run the gateway until it knows the nodes; its clock is wrong by `skew_s`."""
        log = self.folder / "gateway.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENLORA_")}
        if skew_s:
            environment |= {"PYTHONPATH": str(Path(__file__).parent / "skew"), "CLOCK_SKEW_S": str(skew_s)}
        with log.open("ab") as out:
            self.gateway = await asyncio.create_subprocess_exec(
                *COMMAND, "gateway", "--config", str(self.folder / "gateway.yaml"), stdout=out, stderr=out,
                env=environment,
            )  # fmt: skip

        async def ready() -> bool:
            assert self.gateway is not None
            assert self.gateway.returncode is None, log.read_text()[-4000:]
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with aiohttp.ClientSession() as session, session.get(f"{self.gateway_url}/healthz") as answer:
                    return bool((await answer.json())["status"] == "ok")
            return False

        await until(ready, "the gateway", 120)
        self.token = (self.state / "token").read_text().strip()

    async def kill_gateway(self) -> None:
        """kill -9."""
        assert self.gateway is not None
        self.gateway.kill()
        await self.gateway.wait()
        self.gateway = None


@asynccontextmanager
async def village(folder: Path) -> AsyncIterator[Village]:
    """A devnet, two nodes with tiny engines, a gateway; all ready."""
    with running_devnet(folder / "chain") as (url, deployment):
        async with Rpc([url]) as rpc, village_on(folder, url, deployment, rpc) as place:
            yield place


@asynccontextmanager
async def village_on(
    folder: Path, url: str, deployment: Path, rpc: Rpc, *, confirmations: int = 0
) -> AsyncIterator[Village]:
    """The same on a chain that runs already: nodes and gateway reach it by `url`, the test by `rpc`."""
    model = tiny_model(folder / "model")
    async with AsyncExitStack() as stack:
        world = ChainWorld(rpc, load_deployment(deployment))
        chain = {
            "rpc_urls": [url], "deployment_file": str(deployment), "confirmations": confirmations,
            "poll_interval": "200ms",
        }  # fmt: skip
        operators = []
        for name in ("left", "right"):
            operator = Operator(await _registered(folder / name, name, url, deployment, model, world, chain))
            stack.push_async_callback(lambda operator=operator: operator.stack.aclose())
            operators.append(operator)
        await asyncio.gather(*(operator.start() for operator in operators))
        place = Village(world, operators, folder, f"http://127.0.0.1:{free_port()}")
        base = (await operators[0].running.ask("/status"))["base"]
        parse_artifact_id(base)
        await _write_gateway(place, model, base, chain)
        await place.start_gateway()
        try:
            yield place
        finally:
            if place.gateway is not None:
                await place.kill_gateway()


async def _registered(
    root: Path, name: str, url: str, deployment: Path, model: Path, world: ChainWorld, chain: dict[str, Any]
) -> NodeHome:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    home = await NodeHome.make(
        root, name, url, deployment, chain=chain,
        network={"listen": [listen], "announce": [listen]},
        engine={"spawn": True, "model": str(model), "host_cache": "16MiB", "grace": "5s"},
        limits=WIDE,
        settlement={"redeem_gas_multiple": 1},
    )  # fmt: skip
    await world.fund(home.wallet.address, 10 * ETHER)
    home.node = await world.register_node(home.wallet, endpoint=f"{listen}/p2p/{peer_id_of(home.wallet.reveal())}")
    return home


async def _write_gateway(place: Village, model: Path, base: str, chain: dict[str, Any]) -> None:
    keys = place.folder / "payer"
    keys.mkdir(mode=0o700)
    (keys / "password").write_text("opensesame\n")
    (keys / "password").chmod(0o600)
    await keystore.store(keys / "payer.json", PAYER.reveal(), Password("opensesame"), work_factor=2)
    names = place.folder / "names.yaml"
    names.write_text(json.dumps({"bases": {MODEL: {"id": base, "folder": str(model)}}}))
    settings = {
        "node": {"data_dir": str(place.folder / "gateway")},
        "keys": {"keystore_file": str(keys / "payer.json"), "password_file": str(keys / "password")},
        "chain": chain,
        "network": {"listen": ["/ip4/127.0.0.1/tcp/0"], "relay": "off"},
        "gateway": {
            "listen": place.gateway_url.removeprefix("http://"), "names_file": str(names),
            "escrow_per_node": "10 OPEN", "spend_per_day": "100 OPEN",
        },
    }  # fmt: skip
    (place.folder / "gateway.yaml").write_text(yaml.safe_dump(settings))


def freeze(pid: int) -> None:
    """A process that does not run and does not end."""
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let it run again."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
