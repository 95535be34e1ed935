"""What sections are made of: a frozen model of keys, each with its default and its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .kinds import FilePath

File = Annotated[Path, FilePath()]
Wei = int
Bytes = int


def key(default: object, meaning: str) -> Any:
    """A key's default, written as a file would write it, and its meaning for the reference."""
    return Field(default=default, description=meaning, validate_default=True)


def keys(default: tuple[str, ...], at_most: int, meaning: str) -> Any:
    """The same for a key that holds a list."""
    return Field(default=default, description=meaning, validate_default=True, max_length=at_most)


def section() -> Any:
    """A section that may be left out. Validated when a `Config` is built: the home directory is looked up then."""
    return Field(default={}, validate_default=True)


class Section(BaseModel):
    """Keys that belong together. Frozen; unknown keys are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
