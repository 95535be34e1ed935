"""Rules between the keys of engines: how each is reached, and that no two stand in each other's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from .engines import MAX_MODELS, EachEngine, NamedEngine

if TYPE_CHECKING:
    from .schema import Config

Broken = tuple[str, str]
DEFAULTS = EachEngine()
TOLD_AT_START = ("device", "max_loras", "kv_memory", "args")
"""Keys that become flags of a process of ours."""


def engines_are_written_once(config: Config) -> Iterator[Broken]:
    """With `engines`, the section `engine` keeps only what all engines share."""
    if not config.engines:
        return
    for name in EachEngine.model_fields:
        if getattr(config.engine, name) != getattr(DEFAULTS, name):
            yield f"engine.{name}", "move it below a name in engines: `engine` then holds what all of them share"


def each_engine_is_reached_one_way(config: Config) -> Iterator[Broken]:
    """The native engine listens on a socket only; a vLLM server is never ours to start."""
    for engine in config.all_engines:
        at, keys = engine.where, engine.keys
        if keys.backend == "native" and keys.url:
            yield f"{at}.url", f"set {at}.backend: vllm, or leave out the url: the native engine has a socket only"
        if keys.backend == "vllm" and keys.spawn:
            yield f"{at}.spawn", f"set {at}.spawn: false: a vLLM server is started by its own service"
        if keys.backend == "vllm" and (keys.url is None) == (keys.socket is None):
            yield f"{at}.url", f"name the vLLM server by {at}.url or by {at}.socket, one of the two"
        if keys.api_key_file is not None and keys.url is None:
            yield f"{at}.api_key_file", f"leave it out, or set {at}.url: a Unix socket asks for no key"


def what_a_spawned_engine_is_told_needs_spawn(config: Config) -> Iterator[Broken]:
    """A key that becomes a flag of a process does nothing where the process is not ours."""
    for engine in config.all_engines:
        if engine.keys.spawn:
            continue
        for name in TOLD_AT_START:
            if getattr(engine.keys, name) != getattr(DEFAULTS, name):
                yield f"{engine.where}.{name}", "leave it out: this engine is not started here, give it to its own unit"


def several_engines_name_their_models(config: Config) -> Iterator[Broken]:
    """What `engine.model` may leave to a gateway, an entry of `engines` may not."""
    for name, keys in config.engines.items():
        if keys.model is None:
            yield f"engines.{name}.model", "name the base model: a folder, or its artifact id"


def one_advert_names_all_models(config: Config) -> Iterator[Broken]:
    """What no advert can name, no payer would find."""
    models: dict[str | None, None] = {}
    for name, keys in config.engines.items():
        models[keys.model] = None
        if len(models) > MAX_MODELS:
            yield (
                f"engines.{name}.model",
                f"serve at most {MAX_MODELS} base models from one node, the rest from another",
            )
            return


def engines_listen_apart(config: Config) -> Iterator[Broken]:
    """No two engines share a socket or a URL."""
    for one, other in combinations(config.all_engines, 2):
        if one.keys.url is not None and one.keys.url == other.keys.url:
            yield f"{other.where}.url", f"name another server: {one.where} has this one"
        if one.keys.url is None and other.keys.url is None and one.socket == other.socket:
            yield f"{other.where}.socket", f"choose another socket: {one.where} has this one"


def engines_share_a_device_by_consent(config: Config) -> Iterator[Broken]:
    """Two engines that we start on one device each say how much of its memory their caches may take."""
    ours = [engine for engine in config.all_engines if engine.keys.spawn]
    for engine in ours:
        beside = [other.name for other in ours if other is not engine and _may_meet(engine, other)]
        if beside and engine.keys.kv_memory is None:
            yield f"{engine.where}.kv_memory", f"set it, or another device: {', '.join(beside)} may use the same one"


def _may_meet(one: NamedEngine, other: NamedEngine) -> bool:
    """Whether two engines may find themselves on one device: `auto` may be any, `cuda` any card."""
    here, there = one.keys.device, other.keys.device
    if here == there or "auto" in (here, there):
        return True
    return "cuda" in (here, there) and here.startswith("cuda") and there.startswith("cuda")


ENGINE_RULES: tuple[Callable[[Config], Iterator[Broken]], ...] = (
    engines_are_written_once,
    each_engine_is_reached_one_way,
    what_a_spawned_engine_is_told_needs_spawn,
    several_engines_name_their_models,
    one_advert_names_all_models,
    engines_listen_apart,
    engines_share_a_device_by_consent,
)
