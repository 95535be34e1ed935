"""The registered nodes on disk, so that a restart reads what is new on the chain and not all of it.

The file is a cache: losing it costs a longer start, nothing else. It names its chain and contract; one of another
deployment, of another version or cut short counts as none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openlora_chain.deployment import Deployment
from openlora_chain.errors import ChainError
from openlora_chain.files import replace
from openlora_chain.store import BlockRef

from ..protocol.crypto import Address
from .registry import MAX_NODES
from .values import NodeEntry

_log = logging.getLogger(__name__)

FORMAT = "openlora-nodes-1"
MAX_BYTES = 1_024 * MAX_NODES


@dataclass(frozen=True)
class Snapshot:
    """All nodes as of a block."""

    block: BlockRef
    entries: tuple[NodeEntry, ...]


def load_snapshot(path: Path, deployment: Deployment) -> Snapshot | None:
    """The snapshot of this deployment, None where there is no usable one. Blocks on the disk."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_BYTES))
        if document["format"] != FORMAT or document["of"] != _name(deployment):
            return None
        number, block_hash = document["block"]
        entries = tuple(_entry(row) for row in document["nodes"])
        return Snapshot(BlockRef(int(number), bytes.fromhex(block_hash)), entries)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        _log.warning("chain view: the snapshot of nodes cannot be read; reading the chain from the start")
        return None


def save_snapshot(path: Path, deployment: Deployment, block: BlockRef, entries: Iterable[NodeEntry]) -> None:
    """Put the snapshot in place in one step. Blocks on the disk; a failure is logged, the next one may succeed."""
    document = {
        "format": FORMAT,
        "of": _name(deployment),
        "block": [block.number, block.hash.hex()],
        "nodes": [_row(entry) for entry in entries],
    }
    try:
        replace(path, json.dumps(document, separators=(",", ":")).encode())
    except (ChainError, OSError):
        _log.warning("chain view: the snapshot of nodes cannot be written; the next start takes longer")


def _name(deployment: Deployment) -> list[object]:
    return [deployment.chain_id, deployment.contracts["NodeRegistry"].address.hex()]


def _row(entry: NodeEntry) -> list[object]:
    hashes = [value.hex() for value in (entry.node, entry.owner, entry.key, entry.recipient, entry.peer_id)]
    return [*hashes, entry.endpoint, entry.active, entry.registered]


def _entry(row: list[object]) -> NodeEntry:
    node, owner, key, recipient, peer_id, endpoint, active, registered = row
    addresses = [bytes.fromhex(str(value)) for value in (owner, key, recipient)]
    if len(bytes.fromhex(str(node))) != 32 or any(len(address) != 20 for address in addresses):
        raise ValueError("no node")
    return NodeEntry(
        node=bytes.fromhex(str(node)),
        owner=Address(addresses[0]),
        key=Address(addresses[1]),
        recipient=Address(addresses[2]),
        endpoint=str(endpoint),
        active=active is True,
        registered=registered is True,
        peer_id=bytes.fromhex(str(peer_id)),
    )
