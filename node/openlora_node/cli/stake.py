"""`openlora stake`: the node's stake: add, thaw, withdraw."""

from __future__ import annotations

from typing import Annotated

import typer

from ..protocol.ids import format_bytes
from .chaindesk import Reading, amount, open_desk, print_facts, with_options
from .chainwrite import Step, Writing, carry_out
from .operator import NodeOption, node_of, owned
from .options import NOUN

app = typer.Typer(help="Look after the node's stake.", no_args_is_help=True, **NOUN)

Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="Such as '10 OPEN' or '500 gwei'.")]


@app.command()
@with_options(Writing)
async def add(options: Writing, value: Amount, node: NodeOption = None) -> None:
    """Stake more. Anyone may."""
    wei = amount(value)
    async with open_desk(options) as desk:
        found = await node_of(desk, node)
        facts = {"node": format_bytes(found), "stake": f"{wei} wei"}
        await carry_out(options, desk, [Step("add stake", desk.nodes.add_stake(found, wei))], facts)


@app.command()
@with_options(Writing)
async def thaw(options: Writing, value: Amount, node: NodeOption = None) -> None:
    """Begin to take stake out, above the least that a node in service needs."""
    wei = amount(value)
    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        facts = {"node": format_bytes(found), "thaws": f"{wei} wei", "thawsFor": f"{await desk.nodes.thaw_period()} s"}
        await carry_out(options, desk, [Step("thaw stake", desk.nodes.thaw_stake(found, wei))], facts)


@app.command()
@with_options(Writing)
async def withdraw(options: Writing, node: NodeOption = None) -> None:
    """Take out what has thawed; it goes to the owner."""
    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        entry = await desk.nodes.node_of(found)
        facts = {"node": format_bytes(found), "withdraws": f"{entry.thawing} wei"}
        await carry_out(options, desk, [Step("withdraw stake", desk.nodes.withdraw_stake(found))], facts)


@app.command()
@with_options(Reading)
async def status(options: Reading, node: NodeOption = None) -> None:
    """Print what is staked and what thaws."""
    async with open_desk(options) as desk:
        found = await node_of(desk, node)
        entry = await desk.nodes.node_of(found)
        facts = {
            "node": format_bytes(found),
            "staked": str(entry.staked),
            "least": str(await desk.nodes.min_stake()),
            "thawing": str(entry.thawing),
            "thawEnd": str(entry.thaw_end),
            "now": str((await desk.rpc.head()).timestamp),
        }
    print_facts(facts, ("staked", "least", "thawing"), as_json=options.as_json)
