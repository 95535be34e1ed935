"""Errors of the chain package as errors of ours, so that they leave the command like every other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from openlora_chain.errors import ChainError, ChainErrorCode

from ..protocol.errors import ErrorCode, OpenLoraError

T = TypeVar("T")

_KEYS = {
    ChainErrorCode.KEY_NOT_FOUND,
    ChainErrorCode.KEY_EXISTS,
    ChainErrorCode.KEY_UNSAFE,
    ChainErrorCode.KEY_MALFORMED,
    ChainErrorCode.PASSWORD_MISSING,
    ChainErrorCode.PASSWORD_WRONG,
    ChainErrorCode.CRYPTO_BACKEND,
    ChainErrorCode.SIGNER_REFUSED,
}


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Raises OpenLoraError where the chain package raised its own."""
    try:
        return asyncio.run(work)
    except ChainError as error:
        raise translated(error) from None


def translated(error: ChainError) -> OpenLoraError:
    """Key errors end with the exit code of keys, all others with that of the chain."""
    code = ErrorCode.KEY_FAILED if error.code in _KEYS else ErrorCode.CHAIN_FAILED
    return OpenLoraError(code, f"{error.code.value}: {error.message}")
