"""`openlora config`: show, check and explain the configuration."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

app = typer.Typer(help="Show, check and explain the configuration.", no_args_is_help=True, **NOUN)


@app.command()
def show(
    sources: Annotated[bool, typer.Option("--sources", help="Say where each value comes from.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print every key with its value."""
    loaded = load_config(config, sets)
    if as_json:
        rows = [
            {"key": setting.key.dotted, "value": setting.key.as_json(setting.value)}
            | ({"source": setting.source} if sources else {})
            for setting in loaded.settings
        ]
        print_json({"file": str(loaded.file) if loaded.file else None, "settings": rows})
        return
    columns = ("key", "value", "source") if sources else ("key", "value")
    print_table(
        columns, ((setting.key.dotted, setting.text, setting.source)[: len(columns)] for setting in loaded.settings)
    )


@app.command()
def check(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Report every problem at once.

    Exits with 0 when there is none, else with 3.
    """
    loaded = load_config(config, sets)
    changed = sum(setting.source != "default" for setting in loaded.settings)
    file = str(loaded.file) if loaded.file else None
    if as_json:
        print_json({"ok": True, "file": file, "keys": len(loaded.settings), "set": changed})
    else:
        print_text(f"valid: {file or 'no file'}, {changed} of {len(loaded.settings)} keys set")


@app.command()
def reference(as_json: AsJson = False) -> None:
    """Print docs/configuration.md.

    Every key with its type, default, variable and meaning, from the schema.
    """
    from ..config.catalog import EACH_ENGINE, KEYS
    from ..config.reference import reference as page

    if not as_json:
        print_text(page().removesuffix("\n"))
        return
    print_json(
        [
            {
                "key": key.dotted,
                "type": key.type_text,
                "default": key.default_text,
                "variable": key.env,
                "meaning": key.meaning,
            }
            for key in (*KEYS, *EACH_ENGINE.values())
        ]
    )
