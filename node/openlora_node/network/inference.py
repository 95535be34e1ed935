"""Inference over streams, as the gateway and the daemon use it: `/openlora/infer/1` from either side."""

from __future__ import annotations

from .inference_client import Exchange, InferClient
from .inference_server import Inbound, serve_session

__all__ = ["Exchange", "Inbound", "InferClient", "serve_session"]
