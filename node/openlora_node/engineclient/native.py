"""Our engine's dialect (docs/engine-api.md): mixes by request, seeds, and a /version that tells what runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..protocol.pipeline import WEIGHT_ONE
from .dialect import engine_digest
from .failures import broken
from .values import EngineBody, EngineInfo, Mix, engine_name


class _Version(msgspec.Struct):
    version: str
    model: str
    model_digest: str
    device: str
    dtype: str
    lora_dtype: str
    quantization: str
    eos_token_ids: tuple[int, ...]


class Native:
    """As Dialect says."""

    name = "native"

    def info(self, version: Mapping[str, Any], models: Mapping[str, Any]) -> EngineInfo:
        """As Dialect says."""
        try:
            told = msgspec.convert(version, _Version)
            longest = next(entry["max_model_len"] for entry in models["data"] if entry["id"] == told.model)
        except (msgspec.ValidationError, KeyError, TypeError, StopIteration):
            raise broken("the engine does not say what it serves, it may be of another version") from None
        digest = engine_digest(
            backend=self.name,
            version=told.version,
            model=told.model_digest or told.model,
            device=told.device,
            dtype=told.dtype,
            lora_dtype=told.lora_dtype,
            quantization=told.quantization,
        )
        return EngineInfo(
            model=told.model,
            model_digest=told.model_digest,
            max_model_len=longest,
            version=told.version,
            digest=digest,
            device=told.device,
            dtype=told.dtype,
            quantization=told.quantization,
            eos_token_ids=told.eos_token_ids,
        )

    def body(self, body: EngineBody, mix: Mix, model: str, max_tokens: int | None) -> dict[str, Any]:
        """As Dialect says. One adapter at weight 1 is asked for by its name, anything else as a mix."""
        if mix.single is not None:
            return body.for_engine(engine_name(mix.single), max_tokens=max_tokens)
        adapters = [(engine_name(artifact), weight / WEIGHT_ONE) for artifact, weight in mix.adapters]
        seed = mix.seed if mix.method.startswith("dare") else None
        return body.for_engine(model, adapters, mix.method, max_tokens=max_tokens, seed=seed)

    def load(self, name: str, path: str) -> dict[str, Any]:
        """As Dialect says."""
        return {"lora_name": name, "lora_path": path}

    def is_loaded(self, status: int, answer: bytes) -> bool:
        """As Dialect says. The same folder under the same name is a success here; another folder is a real conflict."""
        return False
