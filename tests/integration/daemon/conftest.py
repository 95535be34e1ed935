"""What the daemon's tests share: one devnet, one tiny engine by itself, nodes registered and funded on demand."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from openlora_chain.deployment import load_deployment
from openlora_chain.rpc import Rpc
from support.chain_world import PAYER, ChainWorld, running_devnet
from support.daemon_payer import PROMPT
from support.daemon_world import NodeHome, tiny_model

_numbers = itertools.count()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("daemon-model") / "tiny")


@pytest.fixture(scope="session")
def prompt_tokens() -> int:
    from support.engine_tokenizer import tiny_tokenizer

    messages = [{"role": "user", "content": PROMPT}]
    encoded = tiny_tokenizer().apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return len(encoded["input_ids"])


@pytest.fixture(scope="session")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running_devnet(tmp_path_factory.mktemp("daemon-chain")) as running:
        yield running


@pytest.fixture(scope="session")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny engine that runs by itself, as its unit would; gives its socket."""
    folder = tmp_path_factory.mktemp("daemon-engine")
    (folder / "adapters").mkdir()
    socket = folder / "engine.sock"
    arguments = ["--model", model, "--adapters", folder / "adapters", "--uds", socket, "--num-threads", "1",
                 "--kv-cache-memory", "16MiB", "--host-cache", "16MiB", "--max-num-seqs", "8"]  # fmt: skip
    command = [sys.executable, "-P", "-m", "openlora_engine", *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "serving on" in line:
                break
        else:
            pytest.fail("the engine did not start")
        yield socket
        running.kill()


@pytest_asyncio.fixture
async def world(devnet: tuple[str, Path]) -> AsyncIterator[ChainWorld]:
    url, file = devnet
    async with Rpc([url]) as rpc:
        yield ChainWorld(rpc, load_deployment(file))


MakeHome = Callable[..., Awaitable[NodeHome]]


@pytest_asyncio.fixture
async def make_home(
    tmp_path_factory: pytest.TempPathFactory, devnet: tuple[str, Path], model: Path, engine: Path
) -> MakeHome:
    """A node's home that serves the tiny engine; sections go over that."""

    async def make(**sections: dict[str, Any]) -> NodeHome:
        number = next(_numbers)
        root = tmp_path_factory.mktemp("node") / "home"
        mine = {"spawn": False, "model": str(model), "socket": str(engine), "grace": "20s"}
        sections["engine"] = {**mine, **sections.get("engine", {})}
        return await NodeHome.make(root, f"{os.getpid()}-{number}", *devnet, **sections)

    return make


@pytest_asyncio.fixture
async def registered_home(make_home: MakeHome, world: ChainWorld) -> MakeHome:
    """The same, registered on chain, funded, and with escrow of the payer's."""

    async def make(**sections: dict[str, Any]) -> NodeHome:
        home = await make_home(**sections)
        await world.fund(home.wallet.address)
        home.node = await world.register_node(home.wallet)
        await world.send(PAYER, world.settlement.deposit(home.node, 10**18))
        return home

    return make
