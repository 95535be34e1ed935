"""What tells one kind of engine from another: the bodies of its routes and how it says what it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Protocol

from ..protocol.manifest import canonical_json
from .values import EngineBody, EngineInfo, Mix


class Dialect(Protocol):
    """One kind of engine. Methods raise OpenLoraError UNSUPPORTED for what it does not do."""

    name: str

    def info(self, version: Mapping[str, Any], models: Mapping[str, Any]) -> EngineInfo:
        """From the answers of /version and /v1/models. Raises ENGINE_FAILED where they make no sense."""
        ...

    def body(self, body: EngineBody, mix: Mix, model: str, max_tokens: int | None) -> dict[str, Any]:
        """What to post to the completion route; `model` is the base's name."""
        ...

    def load(self, name: str, path: str) -> dict[str, Any]:
        """What to post to /v1/load_lora_adapter."""
        ...

    def is_loaded(self, status: int, answer: bytes) -> bool:
        """Whether a refused load means that this very adapter is there already."""
        ...


def engine_digest(**parts: str) -> bytes:
    """32 bytes that name what an engine was told to be: SHA-256 of the canonical JSON of these texts."""
    return sha256(canonical_json(parts)).digest()
