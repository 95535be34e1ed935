"""`openlora credits`: what nodes credit a dataset's contributors: look, decide, bring into force, veto."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes, parse_artifact_id
from .chaindesk import ChainDesk, Reading, node_id, open_desk, print_facts, with_options
from .chainwrite import Step, Writing, carry_out
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_text

if TYPE_CHECKING:
    from ..settlement.credits import CreditTable

app = typer.Typer(help="See and decide what datasets' contributors are credited by use.", no_args_is_help=True, **NOUN)

Node = Annotated[str, typer.Option("--node", metavar="ID", help="The node that posts.")]
Dataset = Annotated[str, typer.Option("--dataset", metavar="ID", help="sha256:… of the dataset.")]


@app.command()
@with_options(Reading)
async def show(options: Reading, node: Node, dataset: Dataset) -> None:
    """Print what waits, what is in its timelock, what is in force, and by which id its table is fetched."""
    by, data = node_id(node), dataset_id(dataset)
    async with open_desk(options) as desk:
        pool = await desk.settlement.credit_pool(by, data)
        active, pending = await desk.credits.active_of(by, data), await desk.credits.pending_of(by, data)
        facts = {
            "accrued": str(pool.accrued),
            "settled": str(pool.settled),
            "waiting": str(pool.accrued - pool.settled),
            "epoch": str(active.epoch),
            "credited": str(active.total),
            "root": format_bytes(active.root),
            "table": await _where(desk, by, data, active.root),
        }
        if pending is not None:
            facts |= {
                "pendingEpoch": str(pending.epoch),
                "pendingCredited": str(pending.total),
                "pendingRoot": format_bytes(pending.root),
                "pendingTable": await _where(desk, by, data, pending.root),
                "activatesAt": str(pending.activates_at),
                "now": str((await desk.rpc.head()).timestamp),
            }
    wei = ("accrued", "settled", "waiting", "credited", "pendingCredited")
    print_facts(facts, [name for name in wei if name in facts], as_json=options.as_json)


@app.command()
def decide(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Have the running node post and activate all that it can, whatever it is worth. It does so by itself too."""
    from ..api.client import ask

    found = ask(load_config(config, sets).config.control_socket, "POST", "/settlement/credits")
    if as_json:
        print_json(found)
    else:
        print_text(f"{found['queued']} transaction(s) queued")


@app.command()
@with_options(Writing)
async def activate(options: Writing, node: Node, dataset: Dataset) -> None:
    """Bring a post into force whose timelock is over. Anyone may."""
    by, data = node_id(node), dataset_id(dataset)
    async with open_desk(options) as desk:
        pending = await desk.credits.pending_of(by, data)
        if pending is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "nothing of this node waits for this dataset")
        facts = {"dataset": format_artifact_id(data), "credits": f"{pending.total} wei, cumulative"}
        await carry_out(options, desk, [Step("activate the credits", desk.credits.activate(by, data))], facts)


@app.command()
@with_options(Writing)
async def veto(options: Writing, node: Node, dataset: Dataset) -> None:
    """As the dataset's owner, refuse a post in its timelock: what it would decide goes by the share table.

    Reasons: leaves that nobody can fetch, or receipts that come to another table (`openlora attribution audit`).
    """
    by, data = node_id(node), dataset_id(dataset)
    async with open_desk(options) as desk:
        pending = await desk.credits.pending_of(by, data)
        if pending is None or pending.activates_at <= (await desk.rpc.head()).timestamp:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "no post of this node is in its timelock for this dataset")
        owner = (await desk.artifacts.artifact_of(data)).owner
        facts = {
            "dataset": format_artifact_id(data),
            "owner": format_address(owner),
            "refuses": f"root {format_bytes(pending.root)} of epoch {pending.epoch}",
        }
        await carry_out(options, desk, [Step("veto the credits", desk.credits.veto(by, data))], facts)


def dataset_id(text: str) -> bytes:
    """A dataset's id, as a usage error where it is none."""
    try:
        return bytes(parse_artifact_id(text))
    except OpenLoraError as error:
        raise typer.BadParameter(error.message) from None


async def table_in_force(desk: ChainDesk, node: bytes, dataset: bytes) -> CreditTable | None:
    """The table that a node's root in force leads to, from this machine's store; None while none is in force.

    Raises OpenLoraError NOT_FOUND saying how to fetch it.
    """
    from ..settlement.tables import stored_table

    root = await desk.credits.active_root(node, dataset)
    if not any(root):
        return None
    leaves = await _leaves(desk, node, dataset, root)
    return stored_table(desk.config.adapters_dir, leaves, root)


async def _where(desk: ChainDesk, node: bytes, dataset: bytes, root: bytes) -> str:
    """The id of a table and whether it is here."""
    from ..settlement.tables import stored_table

    if not any(root):
        return "none"
    leaves = await _leaves(desk, node, dataset, root)
    try:
        stored_table(desk.config.adapters_dir, leaves, root)
    except OpenLoraError:
        return f"{format_artifact_id(leaves)}, not here: openlora artifacts pull it"
    return format_artifact_id(leaves)


async def _leaves(desk: ChainDesk, node: bytes, dataset: bytes, root: bytes) -> bytes:
    from ..settlement.tables import find_leaves

    found = await find_leaves(
        desk.rpc, desk.deployment, node, dataset, root, max_range=desk.config.chain.log_block_range
    )
    if found is None:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "the chain's events do not tell this root: use another endpoint")
    return found
