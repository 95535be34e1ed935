"""The supervisor over a stand-in for an engine, which hangs, fails, dies, or will not stop; and no orphan is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from openlora_node.engineclient import Channel, EngineClient, EngineReport
from openlora_node.engineclient.process import EngineProcess, ProcessOptions
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth

SUPPORT = Path(__file__).parents[2] / "support"
FAKE = SUPPORT / "engineclient_fake.py"


@dataclass
class Watched:
    """A supervisor and the healths that it told, with a wait for the one that matters."""

    process: EngineProcess
    task: asyncio.Task[None]
    healths: list[ServiceHealth]
    changed: asyncio.Event

    async def until(self, wanted: Callable[[ServiceHealth], bool]) -> ServiceHealth:
        """The first health like this, told already or to come."""
        async with asyncio.timeout(60):
            while not (found := [health for health in self.healths if wanted(health)]):
                self.changed.clear()
                await self.changed.wait()
        return found[0]


@asynccontextmanager
async def watched(socket: Path, *ways: str, **times: float) -> AsyncIterator[Watched]:
    healths: list[ServiceHealth] = []
    changed = asyncio.Event()

    def tell(health: ServiceHealth) -> None:
        healths.append(health)
        changed.set()

    async with EngineClient(Channel(socket=socket)) as client:
        process = EngineProcess(
            (sys.executable, str(FAKE), str(socket), *ways),
            client.report,
            ProcessOptions(**({"watch_s": 0.05} | times)),
            on_change=tell,
        )
        task = asyncio.create_task(process.run(), name="engine")
        try:
            yield Watched(process, task, healths, changed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def up(health: ServiceHealth) -> bool:
    return health.level is Level.UP


def down(health: ServiceHealth) -> bool:
    return health.level is Level.DOWN


async def test_progress_then_up_then_stopped(tmp_path: Path) -> None:
    async with watched(tmp_path / "s") as engine:
        await engine.until(up)
        assert any(health.reason == "the engine starts: loading" for health in engine.healths)
        assert engine.process.last_lines[0] == "loading"
        await engine.process.ready()
        await engine.process.stop()
        await engine.process.stop()
        await engine.task
        assert engine.process.health.reason == "stopped"
        assert engine.process.pid is None
        assert engine.process.starts == 1


async def test_an_engine_that_says_nothing_but_answers_is_up(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "quiet") as engine:
        await engine.until(up)


async def test_any_amount_of_log_is_taken_and_little_kept(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "chatty") as engine:
        await engine.until(up)
        assert sum(map(len, engine.process.last_lines)) < 20_000


async def test_a_fault_in_looking_after_it_is_not_silent(tmp_path: Path) -> None:
    async def broken() -> EngineReport:
        raise ZeroDivisionError

    process = EngineProcess((sys.executable, str(FAKE), str(tmp_path / "s")), broken)
    with pytest.raises(ZeroDivisionError):
        await process.run()
    assert process.pid is None


async def test_a_crash_is_told_and_answered_by_another_start(tmp_path: Path) -> None:
    async with watched(tmp_path / "s") as engine:
        await engine.until(up)
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        told = await engine.until(down)
        assert "signal 9" in told.reason
        assert "starts again in 1 s" in told.reason
        engine.healths.clear()
        await engine.until(up)
        assert engine.process.starts == 2


async def test_an_engine_that_failed_is_replaced(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "failed") as engine:
        assert "has failed: 5 steps in a row failed" in (await engine.until(down)).reason


async def test_an_engine_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", lost_after_s=0.5) as engine:
        await engine.until(up)
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGSTOP)
        assert "did not answer" in (await engine.until(down)).reason
        engine.healths.clear()
        await engine.until(up)


async def test_an_engine_that_never_gets_ready_is_replaced(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "mute", start_s=0.5) as engine:
        assert "was not ready within" in (await engine.until(down)).reason


async def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "stubborn", grace_s=0.1, kill_after_s=0.1) as engine:
        await engine.until(up)
        await engine.process.stop()
        async with asyncio.timeout(30):
            await engine.task


async def test_cancelling_the_supervisor_kills(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "stubborn") as engine:
        await engine.until(up)
        pid = engine.process.pid
        assert pid is not None
        engine.task.cancel()
        await asyncio.gather(engine.task, return_exceptions=True)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("2", ErrorCode.CONFIG_INVALID), ("3", ErrorCode.CONFIG_INVALID), ("7", ErrorCode.ENGINE_UNAVAILABLE)],
)
async def test_what_another_start_cannot_change_is_given_up_with_the_reason(
    tmp_path: Path, code: str, expected: ErrorCode
) -> None:
    async with watched(tmp_path / "s", "exit", code, "openlora engine: --model is wrong (X)") as engine:
        with pytest.raises(OpenLoraError) as given_up:
            await engine.task
        assert given_up.value.code is expected
        assert given_up.value.message == "the engine cannot start: --model is wrong (X)"
        await engine.process.ready()
        assert engine.process.starts == 1


async def test_a_command_that_fails_at_once_is_not_started_in_a_tight_loop(tmp_path: Path) -> None:
    async with watched(tmp_path / "s", "exit", "1", "Traceback") as engine:
        told = await engine.until(down)
        assert "ended with code 1" in told.reason
        assert "Traceback" in told.reason
        assert engine.process.starts == 1
        await engine.process.stop()
        await engine.task


def test_no_engine_outlives_a_daemon_that_was_killed(tmp_path: Path) -> None:
    daemon = [sys.executable, str(Path(__file__).with_name("daemon_process.py")), str(FAKE), str(tmp_path / "s")]
    with subprocess.Popen(daemon, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        engine = os.pidfd_open(int(running.stdout.readline()))
        running.kill()
    wait = f"import select; print(len(select.select([{engine}], [], [], 20)[0]))"
    gone = subprocess.run([sys.executable, "-c", wait], pass_fds=[engine], stdout=subprocess.PIPE, check=True)
    os.close(engine)
    assert gone.stdout.strip() == b"1"
