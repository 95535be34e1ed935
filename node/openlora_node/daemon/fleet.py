"""All engines of a node together: their bases, who serves which now, one health, and what traces their responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..attribution import Output, Part
from ..attribution.tracer import Tracer
from ..config.engines import ONLY
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..serving import EngineChoice
from ..serving.ports import Tracing, only_declared
from .base import CACHE_NAME, Base, Describes, find_base
from .engine import EngineKeeper
from .lanes import Lanes


def bases(engines: Sequence[EngineKeeper]) -> tuple[bytes, ...]:
    """The artifact ids of the base models that are known, each once, in the configuration's order."""
    return tuple(dict.fromkeys(each.base.artifact for each in engines if each.base is not None))


def serving(engines: Sequence[EngineKeeper]) -> tuple[EngineKeeper, ...]:
    """Those on which a request would run now."""
    return tuple(each for each in engines if each.serves)


def choices(engines: Sequence[EngineKeeper]) -> dict[bytes, EngineChoice]:
    """For each base, what chooses among its engines."""
    return {
        base: Lanes([each.lane for each in engines if each.base is not None and each.base.artifact == base])
        for base in bases(engines)
    }


def health(engines: Sequence[EngineKeeper]) -> ServiceHealth:
    """One for all: up while all are, degraded while some are, and what the first in trouble says of itself."""
    found = [(each, each.health()) for each in engines]
    troubled = [(each, seen) for each, seen in found if not seen.works]
    if not troubled:
        return found[0][1]
    each, seen = troubled[0]
    if len(found) == 1:
        return seen
    reason = f"{each.name} is {seen.level.value}{f': {seen.reason}' if seen.reason else ''}"
    if len(troubled) < len(found):
        return ServiceHealth("engine", Level.DEGRADED, reason)
    starting = any(seen.level is Level.INITIALIZING for _, seen in troubled)
    return replace(seen, level=Level.INITIALIZING if starting else Level.DOWN, reason=reason)


async def find_bases(
    engines: Sequence[EngineKeeper], store: Describes, state_dir: Path, fetch: Callable[[bytes], Awaitable[Path]]
) -> None:
    """Find every engine's base model, fetched where it is an artifact that is not here, and have ours start with it.

    A folder that several engines serve is read once. Raises as `find_base`.
    """
    found: dict[str, Base] = {}
    for each in engines:
        model, spawn = each.engine.keys.model, each.engine.keys.spawn
        if model is None:
            raise OpenLoraError(
                ErrorCode.CONFIG_INVALID,
                f"{each.engine.where}.model names no base model: set it to a folder or an artifact id",
            )
        base = found.get(model)
        if base is None or (base.folder is None and spawn):
            cache = state_dir / (CACHE_NAME if each.name == ONLY else f"base-{each.name}.json")
            base = await find_base(model, store, cache, fetch if spawn else None)
        found[model] = each.base = base
        if spawn:
            assert base.folder is not None
            each.spawn(base.folder, base.artifact)


def tracing(
    engines: Sequence[EngineKeeper], indexes: Path, at_the_end: Callable[[Callable[[], None]], object]
) -> Tracing:
    """What finds datasets in responses, by the tokenizer of each base; nothing where only the engine sees that."""
    folders = {each.base.artifact: each.base.folder for each in engines if each.base is not None and each.base.folder}
    tracers: dict[bytes, Tracer] = {base: Tracer(indexes, folder) for base, folder in folders.items()}
    for tracer in tracers.values():
        at_the_end(tracer.close)

    async def trace(parts: tuple[Part, ...], body: Mapping[str, Any], output: Output) -> tuple[Part, ...]:
        found: Tracing = tracers.get(parts[0].artifact, only_declared)  # the base comes first
        return await found(parts, body, output)

    return trace
