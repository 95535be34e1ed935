"""Names for bases and adapters: a YAML file that people write, parsed once. Names are aliases, ids are content.

```yaml
bases:
  smollm2:
    id: sha256:…
    folder: /var/lib/models/smollm2     # its tokenizer and chat template; otherwise fetched from a node that serves it
adapters:
  poet:
    id: sha256:…
    base: smollm2
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import format_artifact_id, parse_artifact_id

NAMES_FILE = "names.yaml"
MAX_BYTES = 1 << 20
MAX_NAME = 128


@dataclass(frozen=True)
class BaseName:
    """A base model with the folder of its tokenizer, if one is named."""

    name: str
    id: bytes
    folder: Path | None = None


@dataclass(frozen=True)
class AdapterName:
    """An adapter and the name or id of its base."""

    name: str
    id: bytes
    base: bytes


@dataclass(frozen=True)
class Names:
    """All names. Two names may mean one artifact; one name never means two."""

    bases: Mapping[str, BaseName] = field(default_factory=dict)
    adapters: Mapping[str, AdapterName] = field(default_factory=dict)

    def name_of(self, artifact: bytes) -> str:
        """The first name of an artifact, else its id as text."""
        named: tuple[BaseName | AdapterName, ...] = (*self.bases.values(), *self.adapters.values())
        return next((entry.name for entry in named if entry.id == artifact), format_artifact_id(artifact))

    def base_of(self, artifact: bytes) -> BaseName | None:
        """The base with this id."""
        return next((entry for entry in self.bases.values() if entry.id == artifact), None)

    def trusts(self, base: bytes) -> bool:
        """Whether the payer chose this base, by its own name or by an adapter's."""
        return self.base_of(base) is not None or any(entry.base == base for entry in self.adapters.values())

    def adapter_of(self, artifact: bytes) -> AdapterName | None:
        """The adapter with this id."""
        return next((entry for entry in self.adapters.values() if entry.id == artifact), None)


def load_names(path: Path, *, must_exist: bool) -> Names:
    """The names in a file; none where an optional file is missing. Raises CONFIG_INVALID naming the entry at fault."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if must_exist:
            raise _invalid("the file that gateway.names_file names does not exist") from None
        return Names()
    except OSError:
        raise _invalid("the names file cannot be read") from None
    if len(content) > MAX_BYTES:
        raise _invalid("the names file is larger than 1 MiB")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise _invalid("the names file is not YAML") from None
    return parse_names(document or {})


def parse_names(document: object) -> Names:
    """The names in a parsed file. Raises CONFIG_INVALID."""
    top = _mapping(document, "the names file", {"bases", "adapters"})
    bases: dict[str, BaseName] = {}
    for name, entry in _mapping(top.get("bases", {}), "bases", None).items():
        fields = _mapping(entry, f"bases.{name}", {"id", "folder"})
        folder = fields.get("folder")
        if folder is not None and not (isinstance(folder, str) and Path(folder).expanduser().is_absolute()):
            raise _invalid(f"bases.{name}.folder: write an absolute path")
        path = Path(folder).expanduser() if isinstance(folder, str) else None
        bases[name] = BaseName(name, _id(fields.get("id"), f"bases.{name}.id"), path)
    adapters: dict[str, AdapterName] = {}
    for name, entry in _mapping(top.get("adapters", {}), "adapters", None).items():
        fields = _mapping(entry, f"adapters.{name}", {"id", "base"})
        if name in bases:
            raise _invalid(f"adapters.{name}: a base has this name already")
        base = fields.get("base")
        base_id = bases[base].id if isinstance(base, str) and base in bases else _id(base, f"adapters.{name}.base")
        adapters[name] = AdapterName(name, _id(fields.get("id"), f"adapters.{name}.id"), base_id)
    return Names(bases, adapters)


def _mapping(value: object, place: str, allowed: set[str] | None) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _invalid(f"{place}: write names and values")
    for key in value:
        if allowed is not None and key not in allowed:
            raise _invalid(f"{place}: unknown key; there are {', '.join(sorted(allowed))}")
        if allowed is None and not (0 < len(key) <= MAX_NAME and key.isprintable() and not set(key) & set("+@ ")):
            raise _invalid(f"{place}: a name is printable, without +, @ and spaces, at most {MAX_NAME} characters")
    return value


def _id(value: object, place: str) -> bytes:
    try:
        return parse_artifact_id(value if isinstance(value, str) else "")
    except ProtocolError:
        raise _invalid(f"{place}: write sha256:<64 lower-case hex>") from None


def _invalid(message: str) -> OpenLoraError:
    return OpenLoraError(ErrorCode.CONFIG_INVALID, message)
