"""The development chain as one thing: start, deploy, fund, write the deployment file, stop; state survives restarts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..deploy import Parameters, deploy
from ..deployment import Deployment, check_deployment, load_deployment
from ..errors import ChainError, ChainErrorCode
from ..rpc import Rpc
from .accounts import FUNDS, dev_accounts, dev_wallet
from .anvil import Anvil, find_anvil
from .bridge import Bridge
from .evm import EmbeddedChain
from .history import History
from .methods import Methods

DEPLOYMENT_NAME = "deployment.json"
QUIET_AFTER_BLOCKS = 8
HEARTBEAT_S = 60.0

Engine = Literal["auto", "embedded", "anvil"]


@dataclass(frozen=True, slots=True)
class Devnet:
    """A running devnet."""

    url: str
    engine: str
    deployment: Deployment
    deployment_file: Path


@contextlib.asynccontextmanager
async def devnet(
    directory: Path, *, port: int = 8545, engine: Engine = "auto", block_time_s: float = 2.0
) -> AsyncIterator[Devnet]:
    """Run a devnet whose state lies in `directory`. Raises ChainError DEVNET_RUNNING, DEVNET_FAILED."""
    await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
    binary = None if engine == "embedded" else find_anvil()
    if engine == "anvil" and binary is None:
        raise ChainError(ChainErrorCode.DEVNET_FAILED, "anvil is not on PATH: install it, or use the embedded chain")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_exclusive(directory))
        # Each engine has its own state and so its own deployment file: one never sees the other's.
        if binary is not None:
            name, url = "anvil", await _start_anvil(stack, binary, directory, port, block_time_s)
        else:
            name, url = "embedded", await _start_embedded(stack, directory, port, block_time_s)
        file = directory / f"{name}-{DEPLOYMENT_NAME}"
        async with Rpc(url) as rpc:
            deployment = await _ensure_deployed(rpc, file)
        yield Devnet(url, name, deployment, file)


async def _start_anvil(
    stack: contextlib.AsyncExitStack, binary: Path, directory: Path, port: int, block_time_s: float
) -> str:
    arguments = ("--block-time", f"{max(round(block_time_s), 1)}", "--mixed-mining")
    anvil = await Anvil.start(binary, port=port, state=directory / "anvil-state.json", arguments=arguments)
    stack.push_async_callback(anvil.stop)
    async with Rpc(anvil.url) as rpc:
        await anvil.fund(rpc, dev_accounts(), FUNDS)
    return anvil.url


async def _start_embedded(stack: contextlib.AsyncExitStack, directory: Path, port: int, block_time_s: float) -> str:
    worker = ThreadPoolExecutor(1, thread_name_prefix="devnet-evm")
    stack.callback(worker.shutdown)
    loop = asyncio.get_running_loop()
    history = History(directory / "blocks.jsonl")
    chain = await loop.run_in_executor(worker, _replayed, history)
    stack.callback(history.close)
    bridge = Bridge(Methods(chain), worker, port)
    url = await bridge.start()
    stack.push_async_callback(bridge.close)
    ticker = asyncio.create_task(_tick(chain, worker, block_time_s), name="devnet-blocks")
    stack.push_async_callback(_end, ticker)
    return url


def _replayed(history: History) -> EmbeddedChain:
    """The chain as it was recorded, recording from here on."""
    genesis_time = history.open(int(time.time()))
    chain = EmbeddedChain(genesis_time, dict.fromkeys(dev_accounts().values(), FUNDS))
    for timestamp, raw in history.blocks():
        chain.replay(timestamp, raw)
    chain.on_block = history.append
    return chain


async def _tick(chain: EmbeddedChain, worker: ThreadPoolExecutor, block_time_s: float) -> None:
    """Empty blocks behind every transaction, so that it gets its confirmations; then a heartbeat, so that time passes.

    A block every interval for ever would make the record, and each restart, grow without bound.
    """
    loop = asyncio.get_running_loop()
    last_at = loop.time()
    while True:
        await asyncio.sleep(block_time_s)
        recent = chain.blocks[-QUIET_AFTER_BLOCKS:]
        if any(block.transaction for block in recent) or loop.time() - last_at >= HEARTBEAT_S:
            await loop.run_in_executor(worker, chain.mine)
            last_at = loop.time()


async def _ensure_deployed(rpc: Rpc, file: Path) -> Deployment:
    """The deployment of an earlier run if it is still on the chain, else a new one."""
    try:
        deployment = await asyncio.to_thread(load_deployment, file)
        await check_deployment(rpc, deployment)
    except ChainError as error:
        if error.code not in (ChainErrorCode.DEPLOYMENT_UNSET, ChainErrorCode.CONTRACT_MISMATCH):
            raise
    else:
        return deployment
    accounts = dev_accounts()
    parameters = Parameters(
        treasury=accounts["treasury"],
        guardian=accounts["deployer"],
        governor=accounts["deployer"],
        governance_delay=60,
        stake_thaw=60,
        min_commit_age=1,
        escrow_thaw=60,
        signer_thaw=60,
        credits_timelock=10,
        credits_window=3_600,
    )
    deployment = replace(await deploy(rpc, dev_wallet("deployer"), parameters, "devnet"), accounts=accounts)
    await asyncio.to_thread(deployment.write, file)
    return deployment


@contextlib.contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ChainError(ChainErrorCode.DEVNET_RUNNING) from None
    try:
        yield
    finally:
        os.close(descriptor)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
