"""An adapter's identity: the SHA-256 of its canonical configuration and its weights file. Names are aliases to it.

Two folders with the same digest compute the same thing; a change of a byte of the weights, or of a setting that the
computation depends on, gives another. Prefix cache, slots, mixes and running requests know digests only.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ADAPTER = b"openlora adapter 1\n"
_MIX = b"openlora mix 1\n"


class Hash(Protocol):
    """What hashlib gives: feed it, then ask."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        ...


def adapter_hash(canonical_config: bytes) -> Hash:
    """The hash of an adapter whose weights file is still to be fed in, from its first byte to its last."""
    return hashlib.sha256(_ADAPTER + len(canonical_config).to_bytes(8, "little") + canonical_config)


def mix_hash(canonical_recipe: bytes) -> Hash:
    """The hash of a mix."""
    return hashlib.sha256(_MIX + canonical_recipe)


def digest_of(finished: Hash) -> str:
    """`sha256:<64 lower-case hex>`."""
    return f"sha256:{finished.hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether this is a digest's one text form."""
    return _DIGEST.fullmatch(text) is not None
