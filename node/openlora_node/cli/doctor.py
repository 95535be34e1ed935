"""`openlora doctor`: what stands between this machine and a node that serves, each line with its fix."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import typer

from .exits import Exit, exit_for
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_text

if TYPE_CHECKING:
    from ..config.schema import Config
    from ..daemon.checkup import Check

app = typer.Typer(help="Check everything that a node needs, with the fix.", invoke_without_command=True, **NOUN)
WIDTH = 11


@app.callback()
def doctor(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> int:
    """Check everything that a node needs: one line a check, ok, warn or fail, with the fix. Changes nothing.

    Returns 0 when nothing fails, else the exit code of the first failure.
    """
    loaded = load_config(config, sets)
    return asyncio.run(_examine(loaded.config, as_json))


async def _examine(config: Config, as_json: bool) -> int:
    from ..daemon.checkup import Verdict

    found: list[Check] = []
    async for check in _checks(config, can_ask=sys.stdin.isatty() and not as_json):
        found.append(check)
        if not as_json:
            print_text(_line(check))
    failed = [check for check in found if check.verdict is Verdict.FAIL]
    if as_json:
        print_json({"ok": not failed, "checks": [_as_json(check) for check in found]})
    else:
        warned = sum(check.verdict is Verdict.WARN for check in found)
        print_text(f"\n{len(found)} checks, {len(failed)} failed, {warned} with a warning")
    return exit_for(failed[0].code) if failed else Exit.OK


async def _checks(config: Config, *, can_ask: bool) -> AsyncIterator[Check]:
    from ..daemon.checkup import check_key, local_checks, lock_holder
    from ..daemon.checkup_chain import chain_checks

    running = bool(lock_holder(config))
    for check in local_checks(config, running=running):
        yield check
    yield await check_key(config, os.environ, can_ask=can_ask)
    async for check in chain_checks(config, os.environ):
        yield check
    yield await _reach(config, running)


async def _reach(config: Config, running: bool) -> Check:
    """What the running node knows of its own reach."""
    from ..api.client import ControlClient
    from ..daemon.checkup import fail, ok, warn
    from ..protocol.errors import ErrorCode, OpenLoraError

    if not running:
        return warn("reach", "unknown while the node does not run", "openlora run, then openlora net reach")
    try:
        async with ControlClient(config.control_socket) as client:
            services = (await client.get("/status"))["services"]
    except OpenLoraError as error:
        return warn("reach", error.message, "openlora status")
    reach = next((service for service in services if service["name"] == "reach"), None)
    if reach is None or reach["level"] == "initializing":
        return warn("reach", "not known yet", "wait until peers have dialled back, then openlora net reach")
    if reach["level"] == "up":
        return ok("reach", "others connect directly")
    judge = fail if reach["level"] == "down" else _warned
    return judge("reach", reach["reason"], "openlora net reach names the fix", ErrorCode.NO_NODE)


def _warned(name: str, found: str, fix: str, _code: Any) -> Check:
    from ..daemon.checkup import warn

    return warn(name, found, fix)


def _line(check: Check) -> str:
    text = f"{check.verdict.value:<5} {check.name:<{WIDTH}} {check.found}"
    return f"{text}\n      {'':<{WIDTH}} → {check.fix}" if check.fix else text


def _as_json(check: Check) -> dict[str, str]:
    return {"name": check.name, "verdict": check.verdict.value, "found": check.found, "fix": check.fix}
