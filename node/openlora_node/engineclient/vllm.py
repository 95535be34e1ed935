"""The dialect of a vLLM server with VLLM_ALLOW_RUNTIME_LORA_UPDATING: one adapter a request, at weight 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..protocol.errors import ErrorCode, OpenLoraError
from .dialect import engine_digest
from .failures import broken
from .values import EngineBody, EngineInfo, Mix, engine_name

_OURS = ("adapters", "adapter_method", "adapter_options")


class Vllm:
    """As Dialect says."""

    name = "vllm"

    def info(self, version: Mapping[str, Any], models: Mapping[str, Any]) -> EngineInfo:
        """As Dialect says. vLLM tells neither digest nor number formats: its digest covers version and model."""
        try:
            base = next(entry for entry in models["data"] if entry.get("parent") is None)
            model, longest, built = str(base["id"]), int(base["max_model_len"]), str(version["version"])
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            raise broken("the engine does not say what it serves, it may be no vLLM server") from None
        digest = engine_digest(backend=self.name, version=built, model=model)
        return EngineInfo(model=model, model_digest="", max_model_len=longest, version=built, digest=digest)

    def body(self, body: EngineBody, mix: Mix, model: str, max_tokens: int | None) -> dict[str, Any]:
        """As Dialect says. Raises UNSUPPORTED for mixes, weights other than 1, and several greedy choices."""
        if mix.adapters and mix.single is None:
            raise OpenLoraError(
                ErrorCode.UNSUPPORTED, "this node's engine mixes no adapters: ask for one at weight 1, or another node"
            )
        if body.raw.get("temperature") == 0 and body.raw.get("n", 1) > 1:
            raise OpenLoraError(
                ErrorCode.UNSUPPORTED, "this node's engine gives one choice at temperature 0: ask for n = 1"
            )
        name = model if mix.single is None else engine_name(mix.single)
        return _in_its_words(body.for_engine(name, max_tokens=max_tokens))

    def load(self, name: str, path: str) -> dict[str, Any]:
        """As Dialect says."""
        return {"lora_name": name, "lora_path": path}

    def is_loaded(self, status: int, answer: bytes) -> bool:
        """As Dialect says. Names come from artifact ids: what is loaded under one is that artifact."""
        return status == 400 and b"already" in answer


def _in_its_words(body: dict[str, Any]) -> dict[str, Any]:
    """Older names of constraints become today's, which is all that newer versions of vLLM know."""
    for old, new in (("guided_json", "json"), ("guided_regex", "regex"), ("guided_choice", "choice")):
        if old in body:
            body["structured_outputs"] = {new: body.pop(old)}
    return {name: value for name, value in body.items() if name not in _OURS}
