"""GET /v1/models: the base under each of its names, then every adapter."""

from __future__ import annotations

from aiohttp import web

from ..errors import Code, EngineError
from .backend import AdapterCard, ModelCard
from .call import Call
from .conversion import split_model
from .reply import json_reply
from .responses import ModelEntry, ModelList


async def list_models(call: Call) -> web.StreamResponse:
    """GET /v1/models."""
    model = call.backend.model
    bases = [_base(name, model) for name in model.names]
    return json_reply(ModelList(data=[*bases, *(_adapter(card, model) for card in call.backend.adapters())]))


async def get_model(call: Call, name: str) -> web.StreamResponse:
    """GET /v1/models/NAME: a base name or digest, an adapter's alias or digest, or base+adapter."""
    model = call.backend.model
    base, adapter = split_model(name, model)
    if base is not None and adapter is None:
        return json_reply(_base(name, model))
    wanted = adapter or name
    card = next((card for card in call.backend.adapters() if wanted in (card.name, card.digest)), None)
    if card is None:
        raise EngineError(Code.MODEL_NOT_FOUND, "no such model: GET /v1/models lists them", param="model")
    return json_reply(_adapter(card, model))


def _base(name: str, model: ModelCard) -> ModelEntry:
    return ModelEntry(id=name, created=model.created, root=model.digest, parent=None, max_model_len=model.max_model_len)


def _adapter(card: AdapterCard, model: ModelCard) -> ModelEntry:
    return ModelEntry(
        id=card.name,
        created=card.created,
        root=card.digest,
        parent=model.names[0],
        max_model_len=model.max_model_len,
        rank=card.rank,
        size=card.nbytes,
        tier=card.tier,
        pinned=card.pinned,
    )
