"""The demo's machines: a devnet, two nodes, a payer's gateway; each with a directory and a configuration of its own."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from chain import ChainDesk
from offers import ADAPTERS, MODEL, Offers
from people import People
from stage import Stage, openlora, say, until

from openlora_chain import keystore, password
from openlora_node.network.identity import peer_id_of

GAS_MONEY = 10 * 10**18
READY_S = 180.0
ESCROW_WEI = 2 * 10**18
"""What the gateway keeps in escrow with each node."""
EPOCH_S = 10
PRICES = (("pricing.input", "0.2 OPEN"), ("pricing.output", "0.6 OPEN"), ("pricing.settlement_charge", "0.001 OPEN"))


@dataclass(frozen=True)
class NodePlace:
    """One node."""

    name: str
    config: Path
    node: str
    address: str
    health: str
    state: Path
    """Where the node keeps its journal, artifacts and indexes."""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Village:
    """Where everything is."""

    def __init__(self, home: Path, stage: Stage) -> None:
        self.home = home
        self.stage = stage
        self.nodes: list[NodePlace] = []
        self.url = ""
        self.deployment_file = Path()
        self.gateway_url = ""
        self.gateway_config = home / "gateway.yaml"
        self.token = ""

    async def start_chain(self) -> None:
        """An embedded devnet."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = ("--dir", self.home / "chain", "--port", str(port))
        await self.stage.start("devnet", "devnet", *where, "--engine", "embedded", "--json")
        told = await until(self._devnet, "the devnet", 60)
        self.deployment_file = Path(told["deploymentFile"])
        say(
            "devnet",
            f"{self.url}, chain {told['chainId']}: contracts deployed, {len(told['accounts'])} funded accounts",
        )

    async def _devnet(self) -> dict[str, object] | None:
        self.stage.check("devnet")
        try:
            return json.loads(self.stage.log("devnet").read_text())  # type: ignore[no-any-return]
        except ValueError:
            return None

    async def make_nodes(self, desk: ChainDesk, people: People) -> list[NodePlace]:
        """Two nodes: initialised, given gas money, registered by their owners."""
        for name, owner in (("node 1", "owner"), ("node 2", "operator-2")):
            self.nodes.append(await self._make_node(name, owner, desk, people))
        return self.nodes

    async def _make_node(self, name: str, owner: str, desk: ChainDesk, people: People) -> NodePlace:
        folder = self.home / name.replace(" ", "-")
        config, secret = folder.with_suffix(".yaml"), folder.with_suffix(".password")
        listen, health = f"/ip4/127.0.0.1/tcp/{free_port()}", f"127.0.0.1:{free_port()}"
        made = await openlora(
            *("init", "--config", config, "--network", "devnet", "--data-dir", folder, "--model", MODEL),
            *("--owner", "0x" + People.wallet(owner).address.hex(), "--rpc", self.url),
            *("--deployment", self.deployment_file, "--password-file", secret),
            *self._sets(
                ("network.listen", json.dumps([listen])),
                ("network.announce", json.dumps([listen])),
                ("api.health_listen", health),
                ("chain.confirmations", "2"),
                ("chain.poll_interval", "500ms"),
                ("settlement.redeem_gas_multiple", "1"),
                ("settlement.epoch", f"{EPOCH_S}s"),
                *PRICES,
            ),
        )
        key = await keystore.load(Path(made["keystore"]), password.from_file(secret))
        await desk.pay(key.address, GAS_MONEY)
        address = f"{listen}/p2p/{peer_id_of(key.reveal())}"
        registered = await openlora(
            "operator", "register", "--endpoint", address, "--config", config, *people.sends(owner)
        )
        say(name, f"{registered['node']}, registered with its stake")
        return NodePlace(name, config, registered["node"], address, f"http://{health}", folder / "devnet")

    async def start(self, offers: Offers, people: People) -> None:
        """Run the nodes and the gateway; return when all are ready."""
        for place in self.nodes:
            await self.stage.start(place.name, "run", "--config", place.config)
        self._write_gateway(offers, people)
        for place in self.nodes:
            await until(lambda place=place: self._is_ready(place), f"{place.name} to be ready", READY_S)  # type: ignore[misc]
            say(place.name, "is ready: engine, network, chain")
        await self.stage.start("gateway", "gateway", "--config", self.gateway_config, "--json")
        told = await until(self._gateway, "the gateway", READY_S)
        self.gateway_url = told["url"].removesuffix("/v1")
        self.token = _text(Path(told["tokenFile"]))
        await until(self._knows_nodes, "the gateway to hear of the nodes", READY_S)
        say("gateway", f"{told['url']}: the whole network as one OpenAI endpoint")

    def _write_gateway(self, offers: Offers, people: People) -> None:
        names = {
            "bases": {"smollm2": {"id": offers.base, "folder": str(MODEL)}},
            "adapters": {name: {"id": offers.adapters[name], "base": "smollm2"} for name in ADAPTERS},
        }
        names_file = self.home / "names.yaml"
        names_file.write_text(json.dumps(names))
        settings = {
            "node": {"network": "devnet", "data_dir": str(self.home / "gateway")},
            "keys": {"keystore_file": str(people.key("payer")), "password_file": str(people.password_file)},
            "chain": {
                "rpc_urls": [self.url],
                "deployment_file": str(self.deployment_file),
                "confirmations": 2,
                "poll_interval": "500ms",
            },
            "network": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
            "gateway": {
                "escrow_per_node": f"{ESCROW_WEI} wei",
                "listen": f"127.0.0.1:{free_port()}",
                "names_file": str(names_file),
                "keep_text": True,
            },
        }
        self.gateway_config.write_text(json.dumps(settings, indent=2))

    async def _is_ready(self, place: NodePlace) -> bool:
        self.stage.check(place.name)
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{place.health}/readyz") as answer:
                services = {service["name"]: service["level"] for service in (await answer.json())["services"]}
        except (aiohttp.ClientError, ValueError, KeyError):
            return False
        return all(services.get(name) == "up" for name in ("engine", "chain", "registration"))

    async def _gateway(self) -> dict[str, str] | None:
        self.stage.check("gateway")
        for line in self.stage.log("gateway").read_text().split("\n{\n"):
            try:
                told = json.loads(line if line.startswith("{") else "{\n" + line)
            except ValueError:
                continue
            if "tokenFile" in told:
                return told  # type: ignore[no-any-return]
        return None

    async def _knows_nodes(self) -> bool:
        self.stage.check("gateway")
        async with aiohttp.ClientSession() as session, session.get(f"{self.gateway_url}/healthz") as answer:
            return bool((await answer.json())["status"] == "ok")

    @staticmethod
    def _sets(*values: tuple[str, str]) -> tuple[str, ...]:
        return tuple(part for name, value in values for part in ("--set", f"{name}={value}"))
