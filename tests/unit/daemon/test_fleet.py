"""All engines of a node together: one health for all, bases each once, an API key that is read and never told."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from openlora_node.config import Config
from openlora_node.daemon import fleet
from openlora_node.daemon.base import Base
from openlora_node.daemon.checkup import Verdict, check_engines
from openlora_node.daemon.engine import EngineKeeper, open_engine
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth

KEY = "sk-hunter22"


class Kept:
    """An engine whose health a test says."""

    def __init__(self, name: str, level: Level, reason: str = "", base: bytes | None = b"\x01" * 32) -> None:
        self.name, self._health = name, ServiceHealth("engine", level, reason)
        self.base = None if base is None else Base(base)

    def health(self) -> ServiceHealth:
        return self._health


def health(*engines: Kept) -> tuple[Level, str]:
    found = fleet.health(engines)  # type: ignore[arg-type]
    return found.level, found.reason


UP, STARTS, LOST = (
    Kept("a", Level.UP), Kept("b", Level.INITIALIZING, "the engine starts"), Kept("c", Level.DOWN, "it was killed"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("engines", "level", "reason"),
    [
        ((UP,), Level.UP, ""),
        ((UP, UP), Level.UP, ""),
        ((UP, LOST), Level.DEGRADED, "c is down: it was killed"),
        ((STARTS, UP), Level.DEGRADED, "b is initializing: the engine starts"),
        ((LOST, STARTS), Level.INITIALIZING, "c is down: it was killed"),
        ((LOST, LOST), Level.DOWN, "c is down: it was killed"),
        ((LOST,), Level.DOWN, "it was killed"),
    ],
)
def test_one_health_for_all(engines: tuple[Kept, ...], level: Level, reason: str) -> None:
    assert health(*engines) == (level, reason)


def test_each_base_stands_once_in_the_order_of_the_file() -> None:
    one, two = b"\x02" * 32, b"\x01" * 32
    kept = [Kept(str(n), Level.UP, base=base) for n, base in enumerate((one, two, one, None))]
    assert fleet.bases(kept) == (one, two)  # type: ignore[arg-type]


def config_of(url: str, key_file: Path) -> Config:
    return Config.model_validate(
        {"engine": {"backend": "vllm", "spawn": False, "url": url, "api_key_file": str(key_file), "model": "/"}}
    )


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


@asynccontextmanager
async def vllm_with_a_key() -> AsyncIterator[str]:
    """A server that asks for the key on /v1 as vLLM does, and for none on /health."""

    async def models(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": "m", "max_model_len": 64}]})

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def fine(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/version", version), web.get("/health", fine)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def kept(config: Config) -> AsyncIterator[EngineKeeper]:
    changed = asyncio.Event()
    async with open_engine(config, config.all_engines[0], changed.set) as keeper:
        task = asyncio.create_task(keeper.run())
        try:
            async with asyncio.timeout(20):
                while keeper.info is None and "API key" not in keeper.health().reason:
                    changed.clear()
                    await changed.wait()
            yield keeper
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_server_with_an_api_key_serves_who_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with vllm_with_a_key() as url, kept(config_of(url, key_file(tmp_path, f"{KEY}\n"))) as keeper:
        assert keeper.serves
        assert keeper.info is not None
        assert keeper.info.max_model_len == 64
    assert KEY not in caplog.text


async def test_a_server_that_refuses_the_key_is_down_and_says_why(tmp_path: Path) -> None:
    async with vllm_with_a_key() as url, kept(config_of(url, key_file(tmp_path, "another"))) as keeper:
        assert not keeper.serves
        found = keeper.health()
        assert found.level is Level.DOWN
        assert "api_key_file" in found.reason


@pytest.mark.parametrize(
    ("text", "mode"), [(KEY, 0o644), ("", 0o600), ("two words", 0o600), ("k\x00y", 0o600), ("k" * 2_000, 0o600)],
    ids=["others may read it", "empty", "not one word", "not printable", "too long"],
)  # fmt: skip
async def test_a_key_file_that_is_unsafe_or_holds_no_key_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    config = config_of("http://127.0.0.1:1", key_file(tmp_path, text, mode))
    with pytest.raises(OpenLoraError, match=r"engine\.api_key_file") as caught:
        async with open_engine(config, config.all_engines[0], lambda: None):
            pass
    assert caught.value.code is ErrorCode.CONFIG_SECRET
    assert KEY not in caught.value.message
    (check,) = check_engines(config)
    assert (check.verdict, check.code) == (Verdict.FAIL, ErrorCode.CONFIG_SECRET)


def test_doctor_looks_at_each_engine(tmp_path: Path) -> None:
    entries: dict[str, Any] = {
        "gone": {"model": str(tmp_path / "nowhere"), "device": "cuda:0"},
        "spawned": {"model": str(tmp_path), "device": "cuda:1"},
        "alone": {"model": str(tmp_path), "spawn": False, "socket": str(tmp_path / "s.sock")},
    }
    checks = {check.name: check for check in check_engines(Config.model_validate({"engines": entries}))}
    assert checks["engine gone"].verdict is Verdict.FAIL
    assert checks["engine gone"].fix == "correct engines.gone.model"
    assert checks["engine spawned"].verdict is Verdict.OK
    assert "cuda:1" in checks["engine spawned"].found
    assert checks["engine alone"].verdict is Verdict.WARN
    assert re.fullmatch(r"systemctl start openlora-engine@alone", checks["engine alone"].fix)
