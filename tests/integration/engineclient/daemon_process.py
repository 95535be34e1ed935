"""A daemon that supervises a stand-in for an engine and tells its process id: made to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from openlora_node.engineclient import Channel, EngineClient
from openlora_node.engineclient.process import EngineProcess


async def main() -> None:
    fake, socket = sys.argv[1:]
    async with EngineClient(Channel(socket=Path(socket))) as client:
        process = EngineProcess((sys.executable, fake, socket, "stubborn"), client.report)
        task = asyncio.create_task(process.run())
        await process.ready()
        print(process.pid, flush=True)
        await task


asyncio.run(main())
