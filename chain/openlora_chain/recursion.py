"""Keeps Python's recursion limit where it was: py_ecc's import (by way of web3) sets it to 100,000, py-evm's to 12,288.

The limit is what stops C decoders, msgspec's and json's, in deeply nested bytes. Without it such bytes overflow the
stack and end the process; a node reads bytes of strangers.
"""

from __future__ import annotations

import sys

LIMIT = sys.getrecursionlimit()

import py_ecc  # noqa: E402, F401 - first, so that no later import of it changes the limit

sys.setrecursionlimit(LIMIT)


def restore() -> None:
    """After an import that sets the limit."""
    sys.setrecursionlimit(LIMIT)
