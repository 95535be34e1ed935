"""Which node this is: its journal remembers, else the registry tells whose key ours is; whether that still holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

from openlora_chain.errors import ChainError

from ..journal import Role
from ..journal.binding import read_binding
from ..journal.database import connect, scalar, storage_errors
from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import ZERO32, format_address, format_bytes

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0

logger = logging.getLogger(__name__)


class _Key(Protocol):
    @property
    def node(self) -> bytes: ...


class KeyRegistry(Protocol):
    """The part of the NodeRegistry that knows keys."""

    async def key_of(self, key: bytes) -> _Key:
        """Which node a key is or was of; 32 zero bytes for no node. Raises ChainError."""
        ...


class RegistryLookups(Protocol):
    """The part of the chain view that knows keys."""

    def node_of(self, address: bytes) -> bytes | None:
        """The registered node whose current key has this address."""
        ...

    def health(self) -> ServiceHealth:
        """How the view is."""
        ...


def remembered(journal: Path, domain: Domain) -> bytes | None:
    """The node that the journal belongs to, of whatever schema; None for one that is not there or was never opened.

    Raises JOURNAL_MISMATCH for another chain's or a payer's, JOURNAL_CORRUPT, STORAGE_*.
    """
    if not journal.is_file():
        return None
    with storage_errors(), closing(connect(journal, "ro")) as connection:
        version = scalar(connection, "PRAGMA user_version")
        binding = read_binding(connection) if version else None
    if binding is None:
        return None
    if binding.role != Role.NODE or binding.domain != domain:
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH)
    return binding.owner


async def registered(
    registry: KeyRegistry, key: bytes, tell: Callable[[str], None], *, pause: float = FIRST_PAUSE_S
) -> bytes:
    """The node whose key this is, once the chain answers and somebody registered it. `tell` hears what it waits for."""
    while True:
        try:
            node = bytes((await registry.key_of(key)).node)
            if node != ZERO32:
                return node
            told = f"no node has the key {format_address(key)}: register it with `openlora operator register`"
        except ChainError as error:
            told = f"which node this is cannot be asked: {error.message}"
        tell(told)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def registration(view: RegistryLookups, node: bytes, key: bytes) -> ServiceHealth:
    """Whether the registry still says that this key speaks for this node."""
    found = view.node_of(key)
    if found == node:
        return ServiceHealth("registration", Level.UP)
    if view.health().level is Level.INITIALIZING or (found is None and not view.health().works):
        return ServiceHealth("registration", Level.INITIALIZING, "the registry is being read")
    if found is None:
        return ServiceHealth(
            "registration",
            Level.DOWN,
            f"{format_address(key)} is not the current key of {format_bytes(node)}: see `openlora operator status`",
        )
    return ServiceHealth(
        "registration", Level.DOWN, "the key is another node's than the journal's: give it its own data directory"
    )
