"""The demo's processes: the very commands that a person would type, started, awaited, and ended together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from rich.console import Console

OPENLORA = str(Path(sys.prefix) / "bin" / "openlora")
END_S = 45.0

console = Console(highlight=False, markup=False, soft_wrap=True)


def say(who: str, what: str = "") -> None:
    """One line."""
    console.print(f"{who:<10}{what}".rstrip())


class CommandFailed(Exception):
    """A command ended badly: what it said."""


async def openlora(*arguments: str | Path, stdin: str | None = None) -> Any:
    """Run `openlora … --json` to its end; its answer. Raises CommandFailed."""
    process = await asyncio.create_subprocess_exec(
        *(OPENLORA, *map(str, arguments), "--json"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(None if stdin is None else stdin.encode())
    if process.returncode:
        raise CommandFailed(f"openlora {' '.join(map(str, arguments))}: {(err or out).decode().strip()[-1000:]}")
    return json.loads(out) if out.strip() else None


class Stage:
    """Processes that stay up until the demo ends; each writes to a log of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            await self.end(name)

    async def start(self, name: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        """Start `openlora …` under a name."""
        with self.log(name).open("wb") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                *(OPENLORA, *map(str, arguments)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    async def end(self, name: str) -> None:
        """Ask a process to stop, wait until it did; end it where it does not."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    def log(self, name: str) -> Path:
        """What a process says."""
        return self.home / f"{name}.log"

    def check(self, name: str) -> None:
        """Raises CommandFailed when a process has ended by itself."""
        code = self._processes[name].returncode
        if code is not None:
            raise CommandFailed(f"{name} ended with code {code}: {self.log(name).read_text()[-2000:]}")


async def until(check: Any, what: str, seconds: float, pause: float = 0.25) -> Any:
    """Ask again and again until the answer is true; the answer. Raises CommandFailed after `seconds`."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        if answer := await check():
            return answer
        if asyncio.get_running_loop().time() > end:
            raise CommandFailed(f"waited {seconds:.0f} s in vain for {what}")
        await asyncio.sleep(pause)
