"""Runs the workload once for every step of a life and kills it there, then again to its end. One import, many forks.

`python killer.py FOLDER` leaves STEP.sqlite (the end) and STEP.killed.sqlite (what the kill left), and prints one JSON
object a step: what the payer saw before and after.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import workload


def forked(path: Path, step: int) -> tuple[bool, list[str]]:
    """Run the workload in a child; whether it came to its end, and what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        status = 1
        try:
            signal.alarm(60)
            asyncio.run(workload.main(path, step))
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = lines.read().splitlines()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), (step, code)
    return code == 0, said


def steps_of_a_life(folder: Path) -> list[str]:
    """The name of every journal step of the workload."""
    names: list[str] = []
    path = folder / "names"
    child = os.fork()
    if child == 0:
        workload.dying_at = lambda _step: names.append
        workload.say = lambda _what: None
        asyncio.run(workload.main(folder / "life.sqlite", 0))
        path.write_text("\n".join(names))
        os._exit(0)
    os.waitpid(child, 0)
    return path.read_text().splitlines()


def main(folder: Path) -> None:
    names = steps_of_a_life(folder)
    # The first steps make the schema: the journal's own tests kill there.
    first = next(index for index, name in enumerate(names, 1) if name.startswith("interrupt_running"))
    for step in range(first, len(names) + 1):
        path = folder / f"{step}.sqlite"
        survived, seen = forked(path, step)
        for part in folder.glob(f"{step}.sqlite*"):
            shutil.copy(part, folder / part.name.replace(".sqlite", ".killed.sqlite"))
        finished, rest = forked(path, 0)
        print(
            json.dumps({"step": step, "name": names[step - 1], "survived": survived, "seen": seen, "rest": rest}),
            flush=True,
        )
        assert finished


if __name__ == "__main__":
    main(Path(sys.argv[1]))
