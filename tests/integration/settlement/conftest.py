"""One embedded devnet for the room's tests; each uses keys of its own on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from openlora_chain.deployment import load_deployment
from openlora_chain.rpc import Rpc
from support.chain_cli import ChainCli
from support.chain_world import ChainWorld, running_devnet


@pytest.fixture(scope="session")
def devnet_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running_devnet(tmp_path_factory.mktemp("devnet")) as running:
        yield running


@pytest.fixture
async def world(devnet_at: tuple[str, Path]) -> AsyncIterator[ChainWorld]:
    url, file = devnet_at
    async with Rpc(url) as rpc:
        yield ChainWorld(rpc, load_deployment(file))


@pytest.fixture
def cli(devnet_at: tuple[str, Path], tmp_path: Path) -> ChainCli:
    url, file = devnet_at
    return ChainCli(tmp_path, url, file)
