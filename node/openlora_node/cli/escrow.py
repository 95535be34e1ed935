"""`openlora escrow`: what a payer set aside for nodes: deposit, thaw, withdraw."""

from __future__ import annotations

from typing import Annotated

import typer

from ..protocol.ids import format_address, format_bytes
from .chaindesk import Reading, address, amount, node_id, open_desk, with_options
from .chainwrite import Step, Writing, carry_out
from .escrow_signer import signer
from .options import NOUN
from .output import print_json, print_table

app = typer.Typer(help="Set money aside for nodes, and take it back.", no_args_is_help=True, **NOUN)
app.add_typer(signer, name="signer")

Node = Annotated[str, typer.Argument(metavar="NODE", help="Node id.")]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="Such as '2 OPEN' or '500 gwei'.")]
Nodes = Annotated[list[str], typer.Argument(metavar="NODE...", help="Node ids.")]


@app.command()
@with_options(Writing)
async def deposit(
    options: Writing,
    node: Node,
    value: Amount,
    payer: Annotated[
        str | None, typer.Option("--payer", metavar="ADDRESS", help="Whose escrow it is. Default: the sender's.")
    ] = None,
) -> None:
    """Set money aside for a node. Only vouchers take it out, or a thaw."""
    found, wei = node_id(node), amount(value)
    to = None if payer is None else address(payer)
    async with open_desk(options) as desk:
        settlement = desk.settlement
        call = settlement.deposit(found, wei) if to is None else settlement.deposit_for(to, found, wei)
        facts = {
            "payer": format_address(options.account if to is None else to),
            "node": format_bytes(found),
            "deposit": f"{wei} wei",
        }
        await carry_out(options, desk, [Step("deposit", call)], facts)


@app.command()
@with_options(Writing)
async def thaw(
    options: Writing,
    node: Node,
    value: Annotated[str, typer.Argument(metavar="AMOUNT|all", help="Such as '2 OPEN'; `all` of what does not thaw.")],
) -> None:
    """Begin to take money out. The node redeems its vouchers at once, and serves this payer less."""
    found = node_id(node)
    wanted = None if value == "all" else amount(value)
    async with open_desk(options) as desk:
        account = await desk.settlement.account_of(options.account, found)
        wei = account.balance - account.thawing if wanted is None else wanted
        thaw_s = await desk.settlement.escrow_thaw()
        facts = {"node": format_bytes(found), "thaws": f"{wei} wei", "thawsFor": f"{thaw_s} s"}
        await carry_out(options, desk, [Step("thaw", desk.settlement.thaw(found, wei))], facts)


@app.command("cancel-thaw")
@with_options(Writing)
async def cancel_thaw(options: Writing, node: Node) -> None:
    """Leave the money in."""
    found = node_id(node)
    async with open_desk(options) as desk:
        facts = {"node": format_bytes(found)}
        await carry_out(options, desk, [Step("cancel the thaw", desk.settlement.cancel_thaw(found))], facts)


@app.command()
@with_options(Writing)
async def withdraw(options: Writing, node: Node) -> None:
    """Take out what has thawed; it goes to the sender's recipient."""
    found = node_id(node)
    async with open_desk(options) as desk:
        account = await desk.settlement.account_of(options.account, found)
        facts = {
            "node": format_bytes(found),
            "withdraws": f"{account.thawing} wei",
            "to": format_address(await desk.settlement.recipient_of(options.account)),
        }
        await carry_out(options, desk, [Step("withdraw", desk.settlement.withdraw(found))], facts)


@app.command()
@with_options(Writing)
async def move(
    options: Writing, node: Node, target: Annotated[str, typer.Argument(metavar="TO")], value: Amount
) -> None:
    """Carry thawed money to another node."""
    source, to, wei = node_id(node), node_id(target), amount(value)
    async with open_desk(options) as desk:
        facts = {"from": format_bytes(source), "to": format_bytes(to), "moves": f"{wei} wei"}
        await carry_out(options, desk, [Step("move", desk.settlement.move(source, to, wei))], facts)


@app.command()
@with_options(Reading)
async def show(
    options: Reading,
    nodes: Nodes,
    payer: Annotated[str, typer.Option("--payer", metavar="ADDRESS", help="Whose escrow.")],
) -> None:
    """Print a payer's escrow with nodes."""
    who, found = address(payer), [node_id(node) for node in nodes]
    async with open_desk(options) as desk:
        accounts = [(node, await desk.settlement.account_of(who, node)) for node in found]
    if options.as_json:
        print_json(
            [
                {
                    "node": format_bytes(node),
                    "balance": str(account.balance),
                    "spendable": str(account.balance - account.thawing),
                    "thawing": str(account.thawing),
                    "thawEnd": account.thaw_end,
                }
                for node, account in accounts
            ]
        )
        return
    rows = [
        (
            format_bytes(node),
            str(account.balance),
            str(account.balance - account.thawing),
            str(account.thawing),
            str(account.thaw_end),
        )
        for node, account in accounts
    ]
    print_table(("node", "balance (wei)", "spendable", "thawing", "thaw ends"), rows)


app.command("status")(show)
