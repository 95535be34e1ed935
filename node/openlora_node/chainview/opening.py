"""Opens the chain as the configuration names it: endpoints, deployment, bindings and the view over them.

A wrong chain or contract is refused at once. A chain that does not answer is not: the view says so and goes on trying.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora_chain.bindings import ArtifactRegistry, Credits, NodeRegistry, ReceiptAnchor, Settlement
from openlora_chain.deployment import Deployment, load_deployment
from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.files import read_private
from openlora_chain.rpc import Rpc
from openlora_chain.store import LogStore

from ..config.schema import Chain
from ..protocol.errors import ErrorCode, OpenLoraError
from .memory import MemoryLogs
from .reads import failed
from .view import REFUSALS, ChainView

FIRST_CHECK_S = 5.0
MAX_URL_FILE = 16_384
MAX_URLS = 16
_URL = re.compile(r"https?://\S+", re.ASCII)


@dataclass(frozen=True)
class ChainParts:
    """One deployment, ready to use."""

    rpc: Rpc
    deployment: Deployment
    nodes: NodeRegistry
    artifacts: ArtifactRegistry
    settlement: Settlement
    credits: Credits
    anchor: ReceiptAnchor
    view: ChainView


def rpc_urls(options: Chain) -> tuple[str, ...]:
    """The endpoints in the order in which they are tried. Raises OpenLoraError CONFIG_SECRET, CONFIG_INVALID."""
    private: list[str] = []
    if options.rpc_url_file is not None:
        try:
            text = read_private(options.rpc_url_file, MAX_URL_FILE, ChainErrorCode.KEY_NOT_FOUND).decode("utf-8")
        except ChainError as error:
            raise OpenLoraError(ErrorCode.CONFIG_SECRET, f"chain.rpc_url_file: {error.message}") from None
        except UnicodeDecodeError:
            raise OpenLoraError(ErrorCode.CONFIG_INVALID, "chain.rpc_url_file is no text") from None
        private = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if any(not _URL.fullmatch(line) for line in private):
            raise OpenLoraError(
                ErrorCode.CONFIG_INVALID, "chain.rpc_url_file holds http:// or https:// URLs, one a line"
            )
    urls = tuple(dict.fromkeys((*private, *options.rpc_urls)))[:MAX_URLS]
    if not urls:
        raise OpenLoraError(ErrorCode.CONFIG_INVALID, "name an endpoint of the chain in chain.rpc_urls")
    return urls


def read_deployment(file: Path, chain_id: int | None = None) -> Deployment:
    """The deployment file, of the chain expected. Raises OpenLoraError CHAIN_FAILED."""
    try:
        deployment = load_deployment(file)
    except ChainError as error:
        raise failed(error) from None
    if chain_id is not None and chain_id != deployment.chain_id:
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED, f"chain.chain_id is {chain_id}, the deployment file is of {deployment.chain_id}"
        )
    return deployment


@asynccontextmanager
async def open_chain(
    options: Chain, deployment_file: Path, store: LogStore | None = None, *, snapshot: Path | None = None
) -> AsyncIterator[ChainParts]:
    """The chain for as long as the block lasts; somebody runs `view.run` in it.

    `store` keeps the view's progress (the journal's `JournalLogs`), `snapshot` the registered nodes; without both every
    start reads the registry's events from its deployment on. Raises OpenLoraError CHAIN_FAILED for a deployment file
    that cannot be used and for another chain or other contracts than it names.
    """
    deployment = await asyncio.to_thread(read_deployment, deployment_file, options.chain_id)
    urls = await asyncio.to_thread(rpc_urls, options)
    async with Rpc(urls) as rpc:
        view = ChainView(
            rpc,
            deployment,
            MemoryLogs() if store is None else store,
            snapshot=snapshot,
            poll_s=options.poll_interval.total_seconds(),
            max_range=options.log_block_range,
        )
        await _first_check(view)
        yield ChainParts(
            rpc=rpc,
            deployment=deployment,
            nodes=NodeRegistry(rpc, deployment),
            artifacts=ArtifactRegistry(rpc, deployment),
            settlement=Settlement(rpc, deployment),
            credits=Credits(rpc, deployment),
            anchor=ReceiptAnchor(rpc, deployment),
            view=view,
        )
        await view.close()


async def _first_check(view: ChainView) -> None:
    """Refuse what is wrong; leave what does not answer to the view's run."""
    try:
        async with asyncio.timeout(FIRST_CHECK_S):
            await view.check()
    except TimeoutError:
        pass
    except ChainError as error:
        if error.code in REFUSALS:
            raise failed(error) from None
