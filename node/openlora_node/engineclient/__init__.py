"""The way to the engine, ours or a vLLM server, and the engine's process. No torch, no prompt in any log."""

from .channel import Channel
from .client import EngineClient, EngineReport, EngineState
from .values import Chunk, EngineBody, EngineInfo, EngineLoad, Mix, artifact_of, engine_name

__all__ = [
    "Channel",
    "Chunk",
    "EngineBody",
    "EngineClient",
    "EngineInfo",
    "EngineLoad",
    "EngineReport",
    "EngineState",
    "Mix",
    "artifact_of",
    "engine_name",
]
