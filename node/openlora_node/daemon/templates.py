"""Files that come with the package: the systemd units, and the commented configuration that `init` fills in."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..config.catalog import BY_DOTTED
from ..protocol.errors import ErrorCode, OpenLoraError

Unit = Literal["node", "engine", "engine@"]
UNITS: tuple[Unit, ...] = ("node", "engine", "engine@")
"""The node, its only engine, and one of several by name."""
PROGRAM = "/usr/local/bin/openlora"
"""The program's place in the units as they lie in the repository."""
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""What the units' sandbox hides from the service."""

_PACKAGED = Path(__file__).parents[1] / "templates"
_SOURCE = Path(__file__).parents[3]


def unit_name(unit: Unit, instance: str = "") -> str:
    """The unit's file name; with `instance` the name of one engine's."""
    return f"openlora-{unit}{instance}.service"


def program() -> Path:
    """The `openlora` of this installation."""
    return Path(sys.executable).parent / "openlora"


def render_unit(unit: Unit, command: Path) -> str:
    """The unit with this program in it. Raises CONFIG_INVALID for one that the unit's sandbox would hide."""
    if any(command.is_relative_to(place) for place in HIDDEN):
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID,
            f"a service cannot run a program below {command.parts[0]}{command.parts[1]}: its sandbox hides that place;"
            " install into /opt/openlora (python3 -m venv /opt/openlora), then run its `openlora service install`",
        )
    return _text("systemd", unit_name(unit)).replace(PROGRAM, str(command))


def render_config(values: Mapping[str, str]) -> str:
    """The commented configuration with these keys set, each `section.key` to the YAML text of its value."""
    text = _text("configs", "operator.yaml")
    for name, value in values.items():
        key = BY_DOTTED[name]
        section = re.compile(rf"(?ms)^{key.section}:\n.*?(?=^\S|\Z)")
        found = section.search(text)
        assert found is not None, f"operator.yaml has no section {key.section}"
        line = re.compile(rf"(?m)^  #?{key.name}:.*$")
        place = line.search(found[0])
        assert place is not None, f"operator.yaml has no key {name}"
        block = found[0][: place.start()] + f"  {key.name}: {value}" + found[0][place.end() :]
        text = text[: found.start()] + block + text[found.end() :]
    return text


def _text(folder: str, name: str) -> str:
    for path in (_PACKAGED / name, _SOURCE / folder / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise OpenLoraError(ErrorCode.INTERNAL, f"the package came without {name}: install it again")
