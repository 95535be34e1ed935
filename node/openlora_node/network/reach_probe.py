"""A short life of a host that only asks how it can be reached: for `openlora net reach` where no node runs.

It listens where the node would, under a key made up for the moment, asks the peers that it finds, and leaves.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import trio

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain
from ..protocol.errors import OpenLoraError
from .directory import DirectoryOptions, open_directory
from .host import HostOptions
from .opening import open_host
from .reach import ReachOptions, open_reach
from .reach_policy import ENOUGH_VOTES
from .reach_report import report

PATIENCE_S = 30.0
"""For a first answer."""
ALONE_S = 1.0
"""Where there is no peer to ask."""
MORE_S = 8.0
"""For more peers' answers after it."""
NOWHERE = Domain(chain_id=1, verifying_contract=Address(bytes(20)))
"""It takes no adverts and no records: no domain is needed."""


class Nobody:
    """A registry without nodes."""

    def node_of(self, address: bytes) -> bytes | None:
        """None."""
        return None

    def key_of(self, node: bytes) -> bytes | None:
        """None."""
        return None

    def endpoints(self) -> tuple[str, ...]:
        """None."""
        return ()


def probe(
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    bootstrap: tuple[str, ...],
    peers_file: Path | None = None,
    relay: Literal["off", "use", "serve"] = "use",
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """The report of such a host. Takes at most about `patience_s`. Raises CONFIG_INVALID when it cannot listen."""

    async def look() -> dict[str, Any]:
        options = HostOptions(listen=listen, announce=announce)
        directory_options = DirectoryOptions(
            NOWHERE, bootstrap=bootstrap, peers_file=peers_file, serve=False, enough_peers=ENOUGH_VOTES + 1
        )
        async with (
            open_host(os.urandom(32), options, Nobody()) as host,
            open_directory(host, directory_options, Nobody()) as directory,
            open_reach(host, ReachOptions(relay="off", announce=announce), None, directory) as reach,
        ):
            nobody = not bootstrap and peers_file is None
            with trio.move_on_after(ALONE_S if nobody else patience_s):
                await reach.decided()
                with trio.move_on_after(MORE_S):
                    await reach.settled()
            return report(replace(reach.state(), relay=relay), host.id)

    try:
        return trio.run(look)
    except BaseExceptionGroup as group:
        found = group.subgroup(OpenLoraError)
        error: BaseException = found or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
