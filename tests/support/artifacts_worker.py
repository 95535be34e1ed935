"""A process that fetches an artifact and says how far it is, until it is done or killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import openlora_node.network  # noqa: F401
from support.artifacts_peers import node, of_peers, open_store


async def main(root: str, artifact: str, peer: str, address: str) -> None:
    """Fetch and print `bytes of bytes` for each chunk kept, then `done`."""
    with open_store(Path(root)) as store:
        async with node(store) as fetcher:
            await fetcher.network.connect(peer, [address])
            await fetcher.fetcher.fetch(
                bytes.fromhex(artifact), of_peers([peer]), progress=lambda done, size: print(done, size, flush=True)
            )
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
