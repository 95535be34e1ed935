"""What a receipt commits to of the sampling: the hash of the settings, and the seed. The prompt is no part of it."""

from __future__ import annotations

import json

from ..openai import Body
from ..protocol.crypto import keccak256

_NOT_SAMPLING = frozenset({"messages", "prompt", "user", "metadata"})


def sampler_hash(body: Body) -> bytes:
    """Keccak-256 of the body's fields other than the prompt, as JSON with sorted keys and without spaces.

    Only the hash is kept: stop texts and schemas may quote what was asked.
    """
    settings = {name: value for name, value in body.raw.items() if name not in _NOT_SAMPLING}
    return keccak256(json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode())


def seed_of(body: Body) -> int | None:
    """The seed that the body gives, if any."""
    seed = body.raw.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
