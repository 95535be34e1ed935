"""What `openlora status` shows of a running node, as JSON: serving or why not, and what stands behind it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from enum import Enum, IntEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..api.health import readiness, services_as_json
from ..journal import Journal, Reader
from ..protocol.errors import OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes
from .board import ESSENTIAL

if TYPE_CHECKING:
    from .engine import EngineKeeper
    from .node import Node
    from .rooms import Rooms

MAX_EXACT = (1 << 53) - 1


async def status(node: Node) -> dict[str, Any]:
    """One answer for the screen. Never fails for want of a room: its part is null then."""
    services = node.board.services()
    body: dict[str, Any] = {
        "version": version("openlora-node"),
        "network": node.config.node.network,
        "pid": os.getpid(),
        "startedAt": node.started_at,
        "ready": readiness(services, ESSENTIAL) < 300 and not node.stopping,
        "summary": node.summary(),
        "stopping": node.stopping or None,
        "services": services_as_json(services),
        "tasks": list(node.supervisor.names),
        "listening": {name: listener.address for name, listener in node.listeners.items()},
    }
    rooms = node.rooms
    body["node"] = format_bytes(rooms.node) if rooms.node else None
    body["key"] = format_address(rooms.wallet.address)
    body["engines"] = [_engine(each) for each in rooms.engines]
    body["engine"] = body["engines"][0] if body["engines"] else None
    body["base"] = body["engine"]["base"] if body["engine"] else None
    body["serving"] = as_json(rooms.serving.load()) if rooms.serving else None
    body["settlement"] = as_json(rooms.settlement.status()) if rooms.settlement else None
    body["outbox"] = as_json(rooms.outbox.status) if rooms.outbox else None
    body["artifacts"] = as_json(rooms.store.usage()) if rooms.store else None
    body["peers"] = await _peers(rooms)
    body["journal"] = await asyncio.to_thread(_journal, rooms.journal) if rooms.journal else None
    return body


def as_json(value: Any) -> Any:
    """A frozen value of any room as JSON: bytes as 0x-hex, names in camel case, large integers as text."""
    match value:
        case bytes():
            found: Any = f"0x{value.hex()}"
        case IntEnum():
            found = value.name.lower()
        case Enum():
            found = as_json(value.value)
        case int() if not isinstance(value, bool) and abs(value) > MAX_EXACT:
            found = str(value)
        case dict():
            found = {str(key): as_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            found = [as_json(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found = {_camel(field.name): as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            found = value
    return found


def _engine(engine: EngineKeeper) -> dict[str, Any]:
    info, health = engine.info, engine.health()
    return {
        "name": engine.name,
        "base": format_artifact_id(engine.base.artifact) if engine.base else None,
        "level": health.level.value,
        "reason": health.reason,
        "running": engine.lane.running,
        "pid": engine.pid,
        "starts": engine.starts,
        "model": info.model if info else None,
        "version": info.version if info else None,
        "device": info.device if info else None,
        "dtype": info.dtype if info else None,
        "maxModelLen": info.max_model_len if info else None,
        "digest": f"0x{info.digest.hex()}" if info else None,
    }


async def _peers(rooms: Rooms) -> int | None:
    if rooms.network is None:
        return None
    try:
        return len(await rooms.network.peers())
    except OpenLoraError:
        return None


def _journal(journal: Journal) -> dict[str, Any] | None:
    try:
        with Reader(journal.path) as reader:
            found: dict[str, Any] = as_json(reader.summary())
            return found
    except OpenLoraError:
        return None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
