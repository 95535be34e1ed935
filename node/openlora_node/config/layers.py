"""What each source says before anything is merged: flags, environment and file as layers of plain values.

Each layer is looked through for unknown names and for secrets where they were written, whatever overrides them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..protocol.errors import ErrorCode
from . import yamlfile
from .catalog import BY_DOTTED, BY_ENV, EACH_ENGINE, ENV_PREFIX, GROUP, KEYS, SECTIONS, Key
from .leaks import names_secret, secret_in, where_it_belongs
from .problems import Problem, did_you_mean, shown

CONFIG_VARIABLE = "OPENLORA_CONFIG"
FLAG = "--set"


@dataclass
class Layer:
    """What one source says: plain values by section and key, and the place of each."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[tuple[str | int, ...], str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def put(self, key: Key, value: yamlfile.Value, place: str) -> None:
        """Take a value for a known key."""
        self.values.setdefault(key.section, {})[key.name] = value
        self.places[key.section, key.name] = place

    def refuse(self, place: str, name: str, message: str) -> None:
        """Take a problem instead."""
        self.problems.append(Problem(place, name, message))

    def refuse_secret(self, place: str, name: str, what: str = "") -> None:
        """Take a secret as a problem: `what` it is, or its key's name tells."""
        message = f"holds {what or 'a secret'}: {where_it_belongs(what or name or place)}"
        self.problems.append(Problem(place, name, message, ErrorCode.CONFIG_SECRET))


def read_file(path: Path) -> Layer:
    """A YAML file of sections. Its problems stand at `file:line`."""
    layer, name = Layer(), shown(str(path))
    try:
        document = yamlfile.parse(yamlfile.read_text(path))
    except yamlfile.YamlError as error:
        layer.refuse(f"{name}:{error.line}" if error.line else name, "", error.message)
        return layer
    places = {node: f"{name}:{line}" for node, line in document.lines.items()}
    for problem in document.problems:
        layer.refuse(f"{name}:{problem.line}", "", problem.message)
    for leaf, line, text in document.texts:
        if what := secret_in(text):
            layer.refuse_secret(f"{name}:{line}", dotted(leaf), what)
    for node, place in places.items():
        # The upper levels are names that `_take_section` judges; a secret may hide deeper, below a wrong key.
        if node and isinstance(node[-1], str) and not _is_judged(node) and _is_secret(node[-1]):
            layer.refuse_secret(place, dotted(node), secret_in(node[-1]) or "")
    if document.root is not None and not isinstance(document.root, dict):
        layer.refuse(places[()], "", "write sections with their keys below them, such as `node:`")
        return layer
    for section, content in (document.root or {}).items():
        _take_section(layer, section, content, places)
    layer.places |= places
    return layer


def _take_section(layer: Layer, section: str, content: yamlfile.Value, places: Mapping[yamlfile.KeyPath, str]) -> None:
    place = places[section,]
    if section == GROUP:
        _take_engines(layer, content, places)
    elif section not in SECTIONS:
        if not _is_secret(section):
            _refuse_name(layer, place, section, "section", {name: name for name in (*SECTIONS, GROUP)})
    elif isinstance(content, dict):
        names = {key.name: key.dotted for key in KEYS if key.section == section}
        for name, value in content.items():
            key = BY_DOTTED.get(f"{section}.{name}")
            if key:
                layer.put(key, value, places[section, name])
            else:
                _refuse_name(layer, places[section, name], name, "key", names, within=section)
    elif content is not None:
        layer.refuse(place, section, "this is a section: write its keys below it, indented")


def _take_engines(layer: Layer, content: yamlfile.Value, places: Mapping[yamlfile.KeyPath, str]) -> None:
    """Engines by name, each with its keys."""
    if content is None:
        return
    if not isinstance(content, dict):
        layer.refuse(places[GROUP,], GROUP, "write a name for each engine, with its keys below it, indented")
        return
    names = {name: f"{GROUP}.NAME.{name}" for name in EACH_ENGINE}
    for engine, keys in content.items():
        place, label = places[GROUP, engine], f"{GROUP}.{shown(engine)}"
        if _is_secret(engine):
            layer.refuse_secret(place, label, secret_in(engine) or "")
        elif isinstance(keys, dict):
            layer.values.setdefault(GROUP, {})[engine] = {key: keys[key] for key in keys if key in EACH_ENGINE}
            for key in keys.keys() - EACH_ENGINE.keys():
                _refuse_name(layer, places[GROUP, engine, key], key, "key", names, within=label)
        else:
            layer.refuse(place, label, "this is an engine: write its keys below it, indented, such as model")


def _is_judged(node: yamlfile.KeyPath) -> bool:
    """Whether a name stands where a section, a key or an engine does."""
    return len(node) <= 2 if node[0] in SECTIONS else node[0] == GROUP and len(node) <= 3


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Every variable that starts with OPENLORA_ must be a key's: a mistyped one would go unnoticed."""
    layer = Layer()
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
            continue
        if key := BY_ENV.get(name):
            _take_text(layer, key, environ[name], name)
        elif what := secret_in(environ[name]):
            layer.refuse_secret(shown(name), "", what)
        else:
            _refuse_name(layer, shown(name), name, "variable", {name: name for name in BY_ENV})
    return layer


def read_flags(flags: Sequence[str]) -> Layer:
    """`section.key=value`, each key once."""
    layer = Layer()
    for flag in flags:
        name, separator, text = flag.partition("=")
        key = BY_DOTTED.get(name)
        if not separator:
            layer.refuse(FLAG, "", "write --set section.key=value")
        elif key is None and (what := secret_in(text)):
            layer.refuse_secret(FLAG, shown(name), what)
        elif key is None:
            _refuse_name(layer, FLAG, name, "key", {name: name for name in BY_DOTTED})
        elif (key.section, key.name) in layer.places:
            layer.refuse(FLAG, name, "this key is set twice: keep one of the flags")
        else:
            _take_text(layer, key, text, FLAG)
    return layer


def _take_text(layer: Layer, key: Key, text: str, place: str) -> None:
    if what := secret_in(text):
        layer.refuse_secret(place, key.dotted, what)
        return
    try:
        layer.put(key, key.parse_text(text), place)
    except ValueError as error:
        layer.refuse(place, key.dotted, str(error))


def _refuse_name(layer: Layer, place: str, name: str, what: str, known: Mapping[str, str], within: str = "") -> None:
    """Refuse a name that is no key's; `within` is the section of a key in the file."""
    label = shown(f"{within}.{name}" if within else name)
    label = "" if label == place else label
    if _is_secret(name):
        layer.refuse_secret(place, label, secret_in(name) or "")
        return
    elsewhere = {key.name: key.dotted for key in KEYS} if within else {}
    hint = did_you_mean(name, known) or did_you_mean(name, elsewhere)
    layer.refuse(place, label, f"there is no such {what}; {hint or '`openlora config reference` lists all'}")


def _is_secret(name: str) -> bool:
    """Whether a key, a variable or a flag of this name holds a secret, or is one."""
    last = name.removeprefix(ENV_PREFIX).rpartition("__")[2].rpartition(".")[2]
    return secret_in(name) is not None or names_secret(last)


def dotted(path: Sequence[str | int]) -> str:
    """`section.key[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text
