"""What `openlora` returns to the shell. Part of the interface: scripts and units branch on these numbers."""

from __future__ import annotations

from enum import IntEnum

from ..protocol.errors import ErrorCode


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 3
    KEY = 4
    CHAIN = 5
    NETWORK = 6
    GPU = 7
    REFUSED = 8
    INTERRUPTED = 130


_EXITS = {
    ErrorCode.INTERNAL: Exit.INTERNAL,
    ErrorCode.CONFIG_INVALID: Exit.CONFIG,
    ErrorCode.CONFIG_SECRET: Exit.CONFIG,
    ErrorCode.DATADIR_LOCKED: Exit.CONFIG,
    ErrorCode.DATADIR_UNSAFE: Exit.CONFIG,
    ErrorCode.JOURNAL_MISMATCH: Exit.CONFIG,
    ErrorCode.CLOCK_WRONG: Exit.CONFIG,
    ErrorCode.KEY_FAILED: Exit.KEY,
    ErrorCode.BAD_SIGNATURE: Exit.KEY,
    ErrorCode.CHAIN_FAILED: Exit.CHAIN,
    ErrorCode.WRONG_CHAIN: Exit.CHAIN,
    ErrorCode.NO_NODE: Exit.NETWORK,
    ErrorCode.NODE_LOST: Exit.NETWORK,
    ErrorCode.ENGINE_UNAVAILABLE: Exit.GPU,
    ErrorCode.ENGINE_FAILED: Exit.GPU,
}


def exit_for(code: ErrorCode) -> Exit:
    """The exit code of an error; what has no row of its own is a refusal."""
    return _EXITS.get(code, Exit.REFUSED)
