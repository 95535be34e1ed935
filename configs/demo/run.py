"""The demo: paid requests from quote to settled voucher, between a node and a payer with real keys and journals.

`make run` starts the node, sends two requests (or the prompts given as arguments), prints each step, checks both
journals and stays up; DEMO=once exits. The two speak the real messages over a Unix socket. There is no engine or chain
in it yet: a stand-in answers with the prompt spelled backwards, and the payer's escrow is assumed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from node import Node
from payer import Payer
from world import DOMAIN, NODE_ID, now, say

from openlora_node.journal import Binding, Journal
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.ids import format_address, format_bytes

PROMPTS = ["Was it a car or a cat I saw?", "Never odd or even"]


async def main(prompts: list[str], once: bool) -> None:
    """Node and payer in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="openlora-demo-") as folder:
        home = Path(folder)
        node_key, payer_key = LocalSigner(secrets.token_bytes(32)), LocalSigner(secrets.token_bytes(32))
        node_journal = Journal.open(home / "node.sqlite", Binding.to_node(DOMAIN, NODE_ID), now)
        payer_journal = Journal.open(home / "payer.sqlite", Binding.to_payer(DOMAIN, payer_key.address), now)
        async with node_journal, payer_journal:
            server = await asyncio.start_unix_server(Node(node_key, node_journal).serve, path=str(home / "node.sock"))
            say("node", f"{format_bytes(NODE_ID)}, key {format_address(node_key.address)}")
            say("payer", format_address(payer_key.address))
            payer = Payer(payer_key, node_key.address, payer_journal)
            for prompt in prompts:
                say("", "")
                say("ask", repr(prompt))
                await payer.ask(home / "node.sock", prompt)
            for journal in (node_journal, payer_journal):
                await journal.check_integrity(deep=True)
            say("", "")
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
    except OpenLoraError as error:
        sys.exit(str(error))
