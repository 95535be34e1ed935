"""The demo: from nothing to paid, attributed responses, with the very commands and files that anyone would use.

`make run` starts an embedded devnet, two nodes with their engines, and a gateway, each a process; registers nodes, a
base model, three adapters and their datasets; asks with each adapter, a mix of two, and the base, through the stock
`openai` client; prints each answer, its receipt and who earned what; lets the nodes redeem and anchor, and credit
contributors with what responses repeat of their data; claims for everybody, and prints balances that add up to the wei.
Then it stays up; DEMO=once exits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from chain import chain_desk
from offers import index, publish
from people import People
from settling import settle
from stage import CommandFailed, Stage, say
from talking import Talk
from village import Village

from openlora_chain.errors import ChainError
from openlora_node.protocol.errors import OpenLoraError


async def main(once: bool) -> None:
    """Everything in a temporary directory; SIGTERM and Ctrl-C end every process that was started."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="openlora-demo-") as folder:
        async with Stage(Path(folder)) as stage:
            await show(Path(folder), stage, once=once)


async def show(home: Path, stage: Stage, *, once: bool) -> None:
    """The demo from beginning to end."""
    began = time.monotonic()
    village = Village(home, stage)
    await village.start_chain()
    async with chain_desk(village.url, village.deployment_file) as desk:
        people = await People.settle_in(home)
        nodes = await village.make_nodes(desk, people)
        offers = await publish(nodes[0].config, home)
        await index(offers, [place.state for place in nodes], home)
        await desk.register(offers.on_chain)
        say("chain", f"{len(offers.on_chain)} artifacts registered, with their prices and what they pass on")
        await village.start(offers, people)
        answers = await Talk(village, offers, began).ask_everything()
        await settle(desk, village, people, offers, answers)
    say("")
    say("done", f"after {time.monotonic() - began:.0f} s")
    if not once:
        say("endpoint", f"{village.gateway_url}/v1, key {village.token}")
        mix = "--adapter pirate:0.7 --adapter haiku:0.3"
        say("try", f"openlora ask 'Where is Rome?' {mix} --config {village.gateway_config}")
        say("stays up", "Ctrl-C ends it")
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main(once=os.environ.get("DEMO") == "once"))
    except (OpenLoraError, ChainError, CommandFailed) as error:
        sys.exit(f"demo: {error}")
    except asyncio.CancelledError:
        sys.exit(0)
