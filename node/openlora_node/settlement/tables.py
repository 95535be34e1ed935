"""Finds the credits table in force: its id by the chain's events, its content in the artifact store of this machine."""

from __future__ import annotations

from pathlib import Path

from openlora_chain.deployment import Deployment
from openlora_chain.errors import ChainErrorCode, RpcError
from openlora_chain.events import CreditsPosted, EventTable
from openlora_chain.rpc import Rpc

from ..artifacts.contents import CREDITS
from ..artifacts.layout import Layout
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id
from .credits import MAX_FILE_BYTES, CreditTable


async def find_leaves(
    rpc: Rpc, deployment: Deployment, node: bytes, dataset: bytes, root: bytes, *, max_range: int
) -> bytes | None:
    """The id under which the table of a posted root is fetched, by the newest event of it; None where there is none.

    Looks back from the head. Raises RpcError; a range that an endpoint refuses is halved.
    """
    table = EventTable(deployment, (CreditsPosted,))
    last, width = (await rpc.head()).number, max_range
    while last >= deployment.block:
        first = max(deployment.block, last - width + 1)
        try:
            logs = await rpc.logs(first, last, table.addresses, table.topics)
        except RpcError as error:
            if error.code is not ChainErrorCode.RPC_FAILED or width == 1:
                raise
            width = max(width // 2, 1)
            continue
        for event in reversed(table.decode_all(logs)):
            if isinstance(event, CreditsPosted) and (event.node, event.dataset, event.root) == (node, dataset, root):
                return event.leaves
        last, width = first - 1, min(width * 2, max_range)
    return None


def stored_table(artifacts: Path, leaves: bytes, root: bytes) -> CreditTable:
    """The table that this machine holds under an id. Raises NOT_FOUND saying how to fetch it, MALFORMED for another."""
    try:
        with (Layout(artifacts).artifact(leaves) / CREDITS).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise OpenLoraError(
            ErrorCode.NOT_FOUND,
            f"the credits table is not on this machine: openlora artifacts pull {format_artifact_id(leaves)}; a table"
            " that nobody can fetch is a ground for the dataset's owner to veto it",
        ) from None
    table = CreditTable.decode(data)
    if table.root != root:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "the table under this id does not lead to the root that was posted")
    return table
