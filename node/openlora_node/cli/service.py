"""`openlora service`: the node and its engine as systemd services."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from .exits import Exit
from .options import NOUN, AsJson
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from ..daemon.templates import Unit

app = typer.Typer(help="Run the node and its engine under systemd.", no_args_is_help=True, **NOUN)

UNIT_DIR = Path("/etc/systemd/system")
LIMITS: dict[str, float] = {"node": 1.5, "engine": 2.0, "engine@": 2.0}
"""Exposure by `systemd-analyze security`, 0 best to 10, that each unit keeps below."""
TIMEOUT_S = 60

Program = Annotated[
    Path | None, typer.Option("--program", metavar="FILE", help="The openlora to run. Default: this installation's.")
]
Which = Annotated[
    Literal["node", "engine", "engine@"], typer.Argument(help="node, engine, or engine@ for several engines.")
]


@app.command("print")
def print_(unit: Which, program: Program = None, as_json: AsJson = False) -> None:
    """Print a unit as `install` would write it."""
    text = _render(unit, program)
    print_json({"name": f"openlora-{unit}.service", "text": text}) if as_json else print_text(text.rstrip("\n"))


@app.command()
def install(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where units lie.")] = UNIT_DIR,
    program: Program = None,
    force: Annotated[bool, typer.Option("--force", help="Replace units that say something else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the units and have systemd read them. Starts nothing."""
    from ..daemon.templates import UNITS, unit_name

    texts = {directory / unit_name(unit): _render(unit, program) for unit in UNITS}
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text and not force:
            raise OpenLoraError(
                ErrorCode.CONFIG_INVALID, f"{path} says something else: keep changes in a drop-in, then add --force"
            )
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
            path.chmod(0o644)
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, f"{directory} is not writable: run this as root") from None
    if directory == UNIT_DIR and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], timeout=TIMEOUT_S, check=False)  # noqa: S607 - root's own PATH
    if as_json:
        print_json({"written": [str(path) for path in texts]})
        return
    for path in texts:
        print_text(f"written: {path}")
    print_text("next: openlora doctor, then systemctl enable --now openlora-engine openlora-node")
    print_text("several engines: systemctl enable --now openlora-engine@NAME for each, in place of openlora-engine")


@app.command()
def score(as_json: AsJson = False) -> int:
    """Ask systemd how exposed the units are: 0 is best, 10 worst; the node keeps to 1.5, an engine to 2.0."""
    from ..daemon.templates import PROGRAM, UNITS, render_unit, unit_name

    command = shutil.which("systemd-analyze")
    if command is None:
        raise OpenLoraError(ErrorCode.UNSUPPORTED, "systemd-analyze is not here: install the package systemd")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="openlora-units-") as folder:
        for unit in UNITS:
            # A template is judged as one of its instances.
            path = Path(folder) / unit_name(unit, "one" if unit.endswith("@") else "")
            path.write_text(render_unit(unit, Path(PROGRAM)), encoding="utf-8")
            done = subprocess.run(  # noqa: S603
                [command, "security", "--offline=true", "--no-pager", str(path)],
                capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            match = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
            if match is None:
                raise OpenLoraError(ErrorCode.UNSUPPORTED, "this systemd cannot judge units offline: 250 or later can")
            found[unit] = float(match[1])
    kept = {unit: found[unit] <= LIMITS[unit] for unit in UNITS}
    if as_json:
        print_json({unit: {"exposure": found[unit], "limit": LIMITS[unit], "ok": kept[unit]} for unit in UNITS})
    else:
        rows = [(unit_name(unit), str(found[unit]), str(LIMITS[unit]), "ok" if kept[unit] else "too exposed")
                for unit in UNITS]  # fmt: skip
        print_table(("unit", "exposure", "limit", ""), rows)
    return Exit.OK if all(kept.values()) else Exit.REFUSED


def _render(unit: Unit, chosen: Path | None) -> str:
    from ..daemon.templates import program, render_unit

    return render_unit(unit, program() if chosen is None else chosen)
