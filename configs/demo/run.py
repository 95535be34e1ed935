"""The demo: paid requests from quote to claimed rewards, with real keys, journals, messages, contracts and chain.

`make run` starts an embedded chain, registers a node, a base and two adapters, sends two requests (or the prompts given
as arguments), prints each step, redeems and claims for everyone, checks both journals and stays up; DEMO=once exits.
Node and payer speak the real messages over a Unix socket. There is no engine in it yet: a stand-in answers with the
prompt spelled backwards.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from chain import settled_world
from node import Node
from payer import Payer
from world import NODE_KEY, PAYER_KEY, PIPELINE, now, say

from openlora_chain.errors import ChainError
from openlora_node.journal import Binding, Journal, LedgerKey
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.ids import format_address, format_bytes

PROMPTS = ["Was it a car or a cat I saw?", "Never odd or even"]


async def main(prompts: list[str], once: bool) -> None:
    """Chain, node and payer in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="openlora-demo-") as folder:
        home = Path(folder)
        async with settled_world(home / "chain") as (world, chain):
            node_journal = Journal.open(home / "node.sqlite", Binding.to_node(world.domain, world.node), now)
            payer_journal = Journal.open(home / "payer.sqlite", Binding.to_payer(world.domain, PAYER_KEY.address), now)
            async with node_journal, payer_journal:
                server = await asyncio.start_unix_server(Node(world, node_journal).serve, path=str(home / "node.sock"))
                say("node", f"{format_bytes(world.node)}, key {format_address(NODE_KEY.address)}")
                say(
                    "payer",
                    f"{format_address(PAYER_KEY.address)}, escrow {await world.escrow(PAYER_KEY.address):,} wei",
                )
                payer = Payer(world, payer_journal)
                for prompt in prompts:
                    say("", "")
                    say("ask", repr(prompt))
                    await payer.ask(home / "node.sock", prompt)
                say("", "")
                key = LedgerKey(PAYER_KEY.address, world.node, PAYER_KEY.address, PIPELINE.id)
                held = (await node_journal.ledger(key)).newest_voucher
                assert held is not None
                await chain.settle(held)
                for journal in (node_journal, payer_journal):
                    await journal.check_integrity(deep=True)
                say("check", "both journals pass their integrity check (deep)")
                if not once:
                    await stay_up(home)
                server.close()


async def stay_up(home: Path) -> None:
    """Until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    say("node", f"the node stays up on {home / 'node.sock'}; Ctrl-C ends it")
    await stop.wait()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1:] or PROMPTS, once=os.environ.get("DEMO") == "once"))
    except (OpenLoraError, ChainError) as error:
        sys.exit(str(error))
