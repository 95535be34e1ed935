"""How unlikely each token is, by tokenizer: one table for the whole network, so that no contributor can move it.

`tables/<SHA-256 of tokenizer.json>.i4` holds millibits, int32 little-endian, by token id; scripts/unigrams.py
makes one.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ..protocol.errors import ErrorCode, OpenLoraError


def surprisal_table(tokenizer: bytes) -> NDArray[np.int32]:
    """The table of a tokenizer, by the digest of its tokenizer.json. Raises NOT_FOUND."""
    file = resources.files(__package__) / "tables" / f"{tokenizer.hex()}.i4"
    if not file.is_file():
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, "no surprisal table for this tokenizer: scripts/unigrams.py makes one to be committed"
        )
    return np.frombuffer(file.read_bytes(), "<i4").astype(np.int32)
