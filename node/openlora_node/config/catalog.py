"""The keys as a list, read off the schema: what the loader, the reference and `openlora config show` walk through."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from . import yamlfile
from .engines import EachEngine
from .kinds import Choice, Count, Flag, Kind
from .schema import Config
from .section import Section

ENV_PREFIX = "OPENLORA_"
GROUP = "engines"
"""The one section whose keys stand below names of the operator's. It has no variables: a name could not be told."""


@dataclass(frozen=True)
class Key:
    """One key: where it stands, what it holds, what it means."""

    section: str
    name: str
    kind: Kind
    nullable: bool
    at_most: int | None
    """Most items when the key holds a list, else None."""
    default: Any
    """The default as a file would give it."""
    meaning: str

    @property
    def dotted(self) -> str:
        """`section.key`."""
        return f"{self.section}.{self.name}"

    @property
    def env(self) -> str:
        """`OPENLORA_SECTION__KEY`; empty for a key of a named engine."""
        if self.section.startswith(f"{GROUP}."):
            return ""
        return f"{ENV_PREFIX}{self.section}__{self.name}".upper()

    @property
    def type_text(self) -> str:
        """Kind and bounds in words."""
        text = " ".join(part for part in (self.kind.name, self.kind.limits) if part)
        if self.at_most is not None:
            text = f"list of {text}, at most {self.at_most}"
        return f"{text}, or null" if self.nullable else text

    @property
    def default_text(self) -> str:
        """The default as a file would write it."""
        if self.default is None:
            return "null"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"[{', '.join(self.default)}]" if isinstance(self.default, tuple) else str(self.default)

    def parse_text(self, text: str) -> yamlfile.Value:
        """The text of a variable or a flag → the plain value that a file would give. Raises ValueError."""
        if text == "null" and self.nullable:
            return None
        if self.at_most is not None:
            return _parse_list(text)
        # Text needs no quotes here, so only kinds that are no text are read as YAML reads a bare word.
        return yamlfile.plain(text) if isinstance(self.kind, Flag | Count) else text

    def of(self, config: Config) -> object:
        """This key's value in `config`."""
        return getattr(getattr(config, self.section), self.name)

    def write(self, value: Any) -> str:
        """A typed value as a file would write it."""
        if value is None:
            return "null"
        if self.at_most is not None:
            return f"[{', '.join(self.kind.write(item) for item in value)}]"
        return self.kind.write(value)

    def as_json(self, value: Any) -> object:
        """A typed value for JSON: numbers and booleans as such, what has a unit as text."""
        if value is None or isinstance(self.kind, Flag | Count):
            return value
        return [self.kind.write(item) for item in value] if self.at_most is not None else self.kind.write(value)


def _parse_list(text: str) -> yamlfile.Value:
    try:
        value = yamlfile.parse(text).root
    except yamlfile.YamlError:
        value = None
    if not isinstance(value, tuple):
        raise ValueError("write a list in brackets, such as [a, b]")  # noqa: TRY004 - a value, not a caller, is wrong
    return value


def _unwrap(annotation: Any, metadata: list[Any]) -> tuple[Kind, bool, bool]:
    """An annotation → its kind, whether it may be null, whether it is a list."""
    for item in metadata:
        if isinstance(item, Kind):
            return item, False, False
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _unwrap(arguments[0], list(arguments[1:]))
    if origin in (Union, types.UnionType):
        kind, _, many = _unwrap(next(item for item in arguments if item is not type(None)), [])
        return kind, True, many
    if origin is tuple:
        return _unwrap(arguments[0], [])[0], False, True
    if origin is Literal:
        return Choice(arguments), False, False
    assert annotation is bool, f"no kind for {annotation}"
    return Flag(), False, False


def _key(section: str, name: str, field: FieldInfo) -> Key:
    kind, nullable, many = _unwrap(field.annotation, field.metadata)
    at_most = next((item.max_length for item in field.metadata if hasattr(item, "max_length")), None)
    assert many == (at_most is not None), f"{section}.{name}: a list says how long it may be"
    return Key(section, name, kind, nullable, at_most, field.default, field.description or "")


def _sections() -> dict[str, type[Section]]:
    sections: dict[str, type[Section]] = {}
    for name, field in Config.model_fields.items():
        if name == GROUP:
            continue
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        sections[name] = field.annotation
    return sections


SECTIONS = _sections()
KEYS = tuple(
    _key(section, name, field) for section, model in SECTIONS.items() for name, field in model.model_fields.items()
)
EACH_ENGINE = {name: _key(f"{GROUP}.NAME", name, field) for name, field in EachEngine.model_fields.items()}
"""The keys of one engine in `engines`, by name."""
BY_DOTTED = {key.dotted: key for key in KEYS}
BY_ENV = {key.env: key for key in KEYS}
LAST_OF_ENGINE = [key for key in KEYS if key.section == "engine"][-1]


def key_at(path: Sequence[str | int]) -> Key | None:
    """The key that a path of names lies in; None where it ends above one."""
    if path[0] != GROUP:
        return BY_DOTTED.get(".".join(map(str, path[:2])))
    known = EACH_ENGINE.get(str(path[2])) if len(path) > 2 else None
    return known and replace(known, section=f"{GROUP}.{path[1]}")


def keys_of(config: Config) -> Iterator[tuple[Key, object]]:
    """Every key of a configuration with its value, those of each named engine after those of `engine`."""
    for key in KEYS:
        yield key, key.of(config)
        if key is LAST_OF_ENGINE:
            for name, each in config.engines.items():
                for known in EACH_ENGINE.values():
                    yield replace(known, section=f"{GROUP}.{name}"), getattr(each, known.name)


def depth_of(path: Sequence[str | int]) -> int:
    """How many parts of a path name a key."""
    return 3 if path[0] == GROUP else 2
