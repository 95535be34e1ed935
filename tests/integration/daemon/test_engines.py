"""Several engines under one daemon, two bases or two of one base: kill -9 of one stops nothing of the others."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openlora_node.cli.exits import Exit
from openlora_node.protocol.ids import parse_artifact_id
from openlora_node.protocol.pipeline import Pipeline
from support.chain_world import PAYER, ChainWorld
from support.daemon_payer import HttpPayer
from support.daemon_world import NodeHome, NodeProcess, openlora, running_node, tiny_model

from .conftest import MakeHome
from .test_life import live_nodes, peer_of, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SMALL = ["--num-threads=1", "--max-num-seqs=8"]
SHARE = {"device": "cpu", "kv_memory": "16MiB", "host_cache": "16MiB"}


@pytest.fixture(scope="module")
def second_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base: a tiny llama with another rope."""
    return tiny_model(tmp_path_factory.mktemp("daemon-model-b") / "other", rope_theta=20_000.0)


@asynccontextmanager
async def engines_of(registered_home: MakeHome, **models: Path) -> AsyncIterator[tuple[NodeHome, NodeProcess]]:
    """A node that starts one engine a name, until it serves with all of them."""
    home = await registered_home(
        api={"health_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "signed_listen": "127.0.0.1:0"},
        network={"listen": ["/ip4/127.0.0.1/tcp/0"], "relay": "off", "advert_interval": "5s"},
    )
    home.settings["engine"] = {"grace": "20s"}
    home.settings["engines"] = {
        name.replace("_", "-"): {"model": str(path), **SHARE, "args": list(SMALL)} for name, path in models.items()
    }
    # Sockets below a test's folder would exceed what the kernel takes.
    for name, keys in home.settings["engines"].items():
        keys["socket"] = f"/tmp/ol-{os.getpid()}-{home.wallet.address.hex()[:8]}-{name}.sock"
    home.write()
    async with running_node(home, OMP_NUM_THREADS="1") as node:
        await node.until_serving()
        await until(node, lambda status: status["ready"] and all(each["model"] for each in status["engines"]))
        yield home, node
        assert await node.stop() == Exit.OK


async def until(node: NodeProcess, met: Callable[[dict[str, Any]], bool], timeout_s: float = 120.0) -> dict[str, Any]:
    """The first status that meets a condition."""
    status: dict[str, Any] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                status = await node.ask("/status")
                if met(status):
                    return status
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"never: {status['engines']}, {node.status_line}\n{node.log[-6000:]}") from None


def payer_of(status: dict[str, Any], name: str, home: NodeHome, world: ChainWorld, prompt_tokens: int) -> HttpPayer:
    """The devnet's payer at this node, for the base that this engine serves."""
    base = bytes(parse_artifact_id(engine(status, name)["base"]))
    return HttpPayer(status["listening"]["signed"], world.domain, PAYER, home.node, Pipeline.of(base), prompt_tokens)


def engine(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in status["engines"] if each["name"] == name)


async def metrics_of(status: dict[str, Any]) -> str:
    async with aiohttp.ClientSession() as session, session.get(status["listening"]["metrics"] + "/metrics") as answer:
        return await answer.text()


async def test_two_bases_one_killed(
    registered_home: MakeHome, world: ChainWorld, model: Path, second_model: Path, prompt_tokens: int
) -> None:
    async with engines_of(registered_home, alpha=model, beta=second_model) as (home, node):
        status = await node.ask("/status")
        one, other = (bytes(parse_artifact_id(engine(status, name)["base"])) for name in ("alpha", "beta"))
        assert one != other
        assert {"engine-alpha", "engine-beta"} <= set(node.services(status))
        alpha = payer_of(status, "alpha", home, world, prompt_tokens)
        beta = payer_of(status, "beta", home, world, prompt_tokens)
        async with alpha, beta, peer_of(node, world, other) as peer:
            # A payer reaches both bases through the one node, and each answers as itself.
            for payer in (alpha, beta):
                assert (await run(payer, await payer.ask(6)))[-1]["t"] == "settled"
            (advert,) = await live_nodes(peer, other, 1)
            assert advert.value.base_models == (one, other)

            asked = await beta.ask(150)
            async with beta.send(asked) as answer:
                assert answer.status == 200, await answer.text()
                lines = beta.lines(answer)
                assert (await anext(lines))["t"] == "accepted"
                os.kill(engine(status, "beta")["pid"], signal.SIGSTOP)  # it is under way, and stays so
                going = await alpha.ask(24)
                os.kill(engine(status, "beta")["pid"], signal.SIGKILL)
                rest = [line async for line in lines]
            assert rest[-1]["t"] == "error", rest
            assert rest[-1]["code"] in {"ENGINE_FAILED", "ENGINE_UNAVAILABLE"}
            assert rest[-1]["retryable"]
            # It starts anew, and is held there: adverts are no more often than every 5 s, a start may be quicker.
            old = engine(status, "beta")["pid"]
            again = await until(node, lambda found: engine(found, "beta")["pid"] not in {None, old})
            os.kill(engine(again, "beta")["pid"], signal.SIGSTOP)
            # The other base goes on, without a restart, while this one is down.
            assert (await run(alpha, going))[-1]["t"] == "settled"
            # Those who follow the lost base alone hear that it is gone, and that it is back.
            assert await live_nodes(peer, other, 0) == ()
            down = await node.ask("/status")
            assert down["ready"]
            assert node.services(down)["engine"] == "degraded"
            os.kill(engine(again, "beta")["pid"], signal.SIGCONT)
            back = await until(node, lambda found: bool(engine(found, "beta")["model"]))
            assert engine(back, "beta")["starts"] == 2
            assert engine(back, "alpha")["starts"] == 1
            assert engine(back, "alpha")["pid"] == engine(status, "alpha")["pid"]
            (advert,) = await live_nodes(peer, other, 1)
            assert advert.value.base_models == (one, other)
            assert (await run(beta, asked))[-1]["t"] == "settled", "the very request that broke off is served now"
            metrics = await metrics_of(back)
        for expected in (
            'openlora_node_engine_up{engine="alpha"} 1.0',
            'openlora_node_engine_starts_total{engine="beta"} 2.0',
            'openlora_node_engine_running{engine="beta"} 0.0',
            'openlora_node_service_up{service="engine-beta"} 1.0',
        ):
            assert expected in metrics, metrics
        assert re.search(r"engine beta.*signal 9", node.log), "the log names the engine that died"
        shown = (await openlora("status", "--config", str(home.config))).stdout
        assert "engine alpha" in shown
        assert "engine-beta" in shown


async def test_two_engines_of_one_base_share_its_requests(
    registered_home: MakeHome, world: ChainWorld, model: Path, prompt_tokens: int
) -> None:
    async with engines_of(registered_home, left=model, right=model) as (home, node):
        status = await node.ask("/status")
        assert engine(status, "left")["base"] == engine(status, "right")["base"]
        async with payer_of(status, "left", home, world, prompt_tokens) as payer:
            first = await payer.ask(150)
            async with payer.send(first) as answer:
                lines = payer.lines(answer)
                assert (await anext(lines))["t"] == "accepted"
                for pid in (engine(status, "left")["pid"], engine(status, "right")["pid"]):
                    os.kill(pid, signal.SIGSTOP)
                running = await until(node, lambda found: sum(each["running"] for each in found["engines"]) == 1)
                busy = next(each["name"] for each in running["engines"] if each["running"])
                idle = {"left": "right", "right": "left"}[busy]
                os.kill(engine(status, busy)["pid"], signal.SIGKILL)
                os.kill(engine(status, idle)["pid"], signal.SIGCONT)
                rest = [line async for line in lines]
            assert rest[-1]["t"] == "error"
            assert rest[-1]["retryable"], rest
            # The base is served all along: the same request ends on the other engine.
            assert (await run(payer, first))[-1]["t"] == "settled"
            for _ in range(3):
                assert (await run(payer, await payer.ask(4)))[-1]["t"] == "settled"
            found = await node.ask("/status")
            assert found["ready"]
            back = await until(node, lambda found: bool(engine(found, busy)["model"]))
            assert (engine(back, busy)["starts"], engine(back, idle)["starts"]) == (2, 1)
