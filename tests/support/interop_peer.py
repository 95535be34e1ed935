"""Drives the third party's peer (tests/interop/js): one JSON command a line in, one answer a line out."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "interop" / "js"
ANSWER_S = 60.0


class CommandFailed(Exception):
    """The peer's own words."""


class JsPeer:
    """A running js-libp2p process. Commands are those of peer.mjs."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def do(self, command: str, **options: Any) -> Any:
        """Run a command. Raises CommandFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **options}).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(ANSWER_S):
            line = await self._process.stdout.readline()
        if not line:
            raise CommandFailed(f"the peer ended: {self._log.read_text()[-2000:]}")
        answer = json.loads(line)
        if "failed" in answer:
            raise CommandFailed(answer["failed"])
        return answer["ok"]


def node_binary() -> str:
    """Node.js: the system's, or the one that the set-up put beside Python."""
    own = Path(sys.prefix) / "bin" / "node"
    found = shutil.which("node") or (str(own) if own.exists() else None)
    assert found, "no Node.js: run scripts/setup.sh"
    return found


@asynccontextmanager
async def js_peer(folder: Path, **start: Any) -> AsyncIterator[tuple[JsPeer, dict[str, str]]]:
    """A peer that listens on 127.0.0.1, and what it says of itself: `peer`, `address`."""
    log = folder / "js.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(node_binary(), "--import", "./polyfill.mjs", "peer.mjs"),
            cwd=FOLDER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=1 << 22,
        )
    try:
        peer = JsPeer(process, log)
        yield peer, await peer.do("start", **start)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined] - the pipes, before the loop ends
