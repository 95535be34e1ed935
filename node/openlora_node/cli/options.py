"""What all commands share: options that mean the same everywhere, and the settings of a noun's app."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import Loaded

NOUN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
"""Arguments for each noun's `typer.Typer`: plain help that starts fast; completion is installed by the root alone."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, errors included.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration file. Default: $OPENLORA_CONFIG, /etc/openlora/node.yaml."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set a key over file and environment; repeatable."),
]


def load_config(file: Path | None, sets: list[str] | None) -> Loaded:
    """The configuration as `--config` and `--set` ask for it. Raises ConfigError."""
    from ..config import load

    return load(file, flags=sets or ())
