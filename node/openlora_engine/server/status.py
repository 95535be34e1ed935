"""GET /health, /metrics, /version: what operators and their tools ask."""

from __future__ import annotations

from importlib.metadata import version

from aiohttp import web

from .backend import HealthState
from .call import Call
from .reply import json_reply
from .responses import HealthBody, VersionBody

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def health(call: Call) -> web.StreamResponse:
    """GET /health: 200 while requests are served, else 503."""
    found = call.backend.health()
    status = 200 if found.state is HealthState.OK else 503
    return json_reply(HealthBody(found.state.value, found.message), status)


async def metrics(call: Call) -> web.StreamResponse:
    """GET /metrics, in Prometheus' text format."""
    body = call.backend.metrics.expose(call.backend.stats())
    return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})


async def show_version(call: Call) -> web.StreamResponse:
    """GET /version."""
    model = call.backend.model
    return json_reply(
        VersionBody(
            version("openlora-node"),
            model.names[0],
            model.digest,
            model.device,
            model.dtype,
            model.lora_dtype,
            model.quantization,
            list(model.eos_token_ids),
        )
    )
