"""vLLM's adapter routes: load, unload, and for what must stay in its slot, pin and unpin."""

from __future__ import annotations

import re

from aiohttp import web

from ..errors import Code, EngineError
from .backend import ModelCard
from .call import Call
from .reply import TEXT
from .requests import LoadAdapterBody, NamedAdapterBody

MAX_PATH_CHARS = 4_096
_ALIAS = re.compile(r"[\w.:/+-]{1,256}")


async def load_lora_adapter(call: Call) -> web.StreamResponse:
    """POST /v1/load_lora_adapter."""
    async with call.body(LoadAdapterBody) as body:
        model = call.backend.model
        _check_alias(body.lora_name, model)
        if body.base_model_name is not None and body.base_model_name not in (*model.names, model.digest):
            raise EngineError(
                Code.MODEL_NOT_FOUND, f"the base served here is {model.names[0]!r}", param="base_model_name"
            )
        if not body.lora_path or len(body.lora_path) > MAX_PATH_CHARS or "\0" in body.lora_path:
            raise EngineError(Code.BAD_REQUEST, "lora_path must name a folder", param="lora_path")
        await call.backend.load_adapter(body.lora_name, body.lora_path, bool(body.load_inplace))
        if body.pinned:
            await call.backend.pin_adapter(body.lora_name, True)
        return _success(body.lora_name, "added")


async def unload_lora_adapter(call: Call) -> web.StreamResponse:
    """POST /v1/unload_lora_adapter."""
    async with call.body(NamedAdapterBody) as body:
        await call.backend.unload_adapter(body.lora_name)
        return _success(body.lora_name, "removed")


async def pin_lora_adapter(call: Call) -> web.StreamResponse:
    """POST /v1/pin_lora_adapter."""
    async with call.body(NamedAdapterBody) as body:
        await call.backend.pin_adapter(body.lora_name, True)
        return _success(body.lora_name, "pinned")


async def unpin_lora_adapter(call: Call) -> web.StreamResponse:
    """POST /v1/unpin_lora_adapter."""
    async with call.body(NamedAdapterBody) as body:
        await call.backend.pin_adapter(body.lora_name, False)
        return _success(body.lora_name, "unpinned")


def _success(name: str, what: str) -> web.Response:
    """vLLM's answer, to the word."""
    return web.Response(text=f"Success: LoRA adapter '{name}' {what} successfully.", content_type=TEXT)


def _check_alias(name: str, model: ModelCard) -> None:
    """An alias must be told from a base, a digest and `base+adapter@digest`."""
    if not _ALIAS.fullmatch(name) or name.startswith("sha256:"):
        raise EngineError(
            Code.BAD_REQUEST,
            "lora_name must be 1 to 256 letters, digits and . _ - / + :, not a digest",
            param="lora_name",
        )
    if any(name == base or name.startswith(f"{base}+") for base in model.names):
        raise EngineError(Code.ADAPTER_NAME_TAKEN, "lora_name is the base's: choose another", param="lora_name")
