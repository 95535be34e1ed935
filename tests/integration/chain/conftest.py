"""A fresh anvil for each test, a journal on disk, and an outbox between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.rpc import Rpc
from support.anvil import CHAIN_ID, ETHER
from support.simchain import HOT

BUNDLED = Path(__file__).parents[3] / "contracts/node_modules/@foundry-rs"


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    found = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert found, "anvil is missing: run `make setup`"
    return found


StartAnvil = Callable[..., Awaitable[Anvil]]


@pytest.fixture
async def start_anvil(anvil_binary: Path) -> AsyncIterator[StartAnvil]:
    started: list[Anvil] = []

    async def start(*arguments: str, chain_id: int = CHAIN_ID) -> Anvil:
        anvil = await Anvil.start(anvil_binary, arguments=arguments, chain_id=chain_id)
        started.append(anvil)
        return anvil

    yield start
    for anvil in started:
        await anvil.stop()


@pytest.fixture
async def anvil(start_anvil: StartAnvil) -> Anvil:
    return await start_anvil("--no-mining")


@pytest.fixture
async def rpc(anvil: Anvil) -> AsyncIterator[Rpc]:
    async with Rpc(anvil.url, first_pause_s=0.01) as rpc:
        await rpc.request("anvil_setBalance", f"0x{HOT.address.hex()}", hex(100 * ETHER))
        yield rpc
