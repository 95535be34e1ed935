"""Flags, environment and file → one `Config`, or every problem at once.

A value's place decides: flag over environment over file over default. pydantic-settings merges the layers, pydantic
validates what comes out, and every error is led back to the place where its value was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import PydanticBaseSettingsSource

from .catalog import Key, depth_of, key_at, keys_of
from .engines import MAX_ENGINES
from .kinds import ERROR_TYPE
from .layers import CONFIG_VARIABLE, FLAG, Layer, dotted, read_environment, read_file, read_flags
from .problems import ConfigError, Problem
from .rules import RULE_ERROR
from .schema import Config

SYSTEM_FILE = Path("/etc/openlora/node.yaml")


@dataclass(frozen=True)
class Setting:
    """One key of a loaded configuration, its value as a file would write it, and where it came from."""

    key: Key
    value: Any
    source: str
    """`default`, `file:line`, a variable's name or `--set`."""

    @property
    def text(self) -> str:
        """The value as a file would write it."""
        return self.key.write(self.value)


@dataclass(frozen=True)
class Loaded:
    """A valid configuration and the origin of every key."""

    config: Config
    file: Path | None
    settings: tuple[Setting, ...]


class LayerSource(PydanticBaseSettingsSource):
    """A layer as pydantic-settings takes it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(Config)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """One section's values."""
        return self._layer.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All of the layer."""
        return {section: dict(values) for section, values in self._layer.values.items()}


def load(file: Path | None = None, *, environ: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> Loaded:
    """Load the configuration. `flags` are the texts of `--set`. Raises ConfigError with every problem found."""
    environ = os.environ if environ is None else environ
    path = find_file(file, environ)
    layers = (read_flags(flags), read_environment(environ), read_file(path) if path else Layer())
    problems = [problem for layer in layers for problem in layer.problems]
    try:
        config = Config(_build_sources=(tuple(LayerSource(layer) for layer in layers), {}))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # A secret in the wrong place is reported as a secret, not once more as a bad value.
        known = {(problem.place, problem.key) for problem in problems}
        found = [problem for item in details for problem in _problems(item, layers)]
        problems += [problem for problem in found if (problem.place, problem.key) not in known]
        raise ConfigError(sorted(problems, key=_reading_order)) from None
    if problems:
        raise ConfigError(sorted(problems, key=_reading_order))
    settings = tuple(
        Setting(key, value, _place((*key.section.split("."), key.name), layers) or "default")
        for key, value in keys_of(config)
    )
    return Loaded(config, path, settings)


def find_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """`--config`, else OPENLORA_CONFIG, else the system's file if there is one."""
    if file is not None:
        return file
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named)
    return SYSTEM_FILE if os.path.lexists(SYSTEM_FILE) else None


def _problems(error: ErrorDetails, layers: Sequence[Layer]) -> Iterator[Problem]:
    """One pydantic error in our words."""
    context = error.get("ctx", {})
    if error["type"] == RULE_ERROR:
        for name, message in context["broken"]:
            yield Problem(_place(name.split("."), layers) or "", name, message)
        return
    path = error["loc"]
    key = key_at(path)
    if key is None:  # above any key: how many engines, and what they are called
        reason = context["reason"] if error["type"] == ERROR_TYPE else f"at most {MAX_ENGINES} engines in one node"
        yield Problem(_place(path[:2], layers) or "", dotted(path[:2]), reason)
        return
    wanted = key.kind.limits or key.kind.name if key.at_most is None else f"a {key.type_text}"
    reason = context["reason"] if error["type"] == ERROR_TYPE else f"write {wanted}"
    yield Problem(_place(path, layers) or "", dotted(path), reason)


def _reading_order(problem: Problem) -> tuple[int, int, str]:
    """The file from its first line, then the environment, the flags, and what stands nowhere."""
    _, _, line = problem.place.rpartition(":")
    if line.isdecimal():
        return 0, int(line), ""
    rank = 3 if not problem.place else 2 if problem.place == FLAG else 1
    return rank, 0, problem.place


def _place(path: Sequence[str | int], layers: Sequence[Layer]) -> str | None:
    """Where the value at `path`, or what holds it, was written: the highest layer that has the key decides."""
    for layer in layers:
        if tuple(path[: depth_of(path)]) in layer.places:
            return next(
                layer.places[tuple(path[:n])] for n in range(len(path), 0, -1) if tuple(path[:n]) in layer.places
            )
    return None
