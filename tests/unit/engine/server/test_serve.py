"""The server's life: where it may listen, how many it serves at once, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.server.app import ROUTES
from openlora_engine.server.backend import HealthState
from openlora_engine.server.options import ServerConfig
from openlora_engine.server.serve import serve, serving, stopping_on_signals
from support.engine_backend import BASE, FakeBackend, numbered
from support.engine_tokenizer import tiny_tokenizer
from support.engine_wire import ask, connected, get, post

COMPLETIONS = "/v1/completions"
STREAM = {"model": BASE, "prompt": "a", "stream": True, "max_tokens": 250}


async def refused(config: ServerConfig) -> str:
    with pytest.raises(EngineError) as caught:
        async with serving(FakeBackend(tiny_tokenizer()), config):
            pass
    assert caught.value.code is Code.CONFIG_INVALID
    return caught.value.message


async def test_a_unix_socket_is_its_users_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with serving(FakeBackend(tiny_tokenizer()), ServerConfig(uds=path)) as address:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # No browser speaks to a Unix socket: any Host will do.
        assert (await ask(address, get("/health", Host="whatever"))).status == 200
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(FakeBackend(tiny_tokenizer()), ServerConfig(uds=path)) as address:
        assert (await ask(address, get("/health"))).status == 200


async def test_a_socket_in_use_and_a_file_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with serving(FakeBackend(tiny_tokenizer()), ServerConfig(uds=path)) as address:
        assert "another process listens" in await refused(ServerConfig(uds=path))
        assert (await ask(address, get("/health"))).status == 200
    path.write_text("precious")
    assert "no socket" in await refused(ServerConfig(uds=path))
    assert path.read_text() == "precious"
    assert "folder of this user" in await refused(ServerConfig(uds=tmp_path / "none" / "sock"))


async def test_a_socket_that_another_server_put_there_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with serving(FakeBackend(tiny_tokenizer()), ServerConfig(uds=path)):
        path.unlink()
        async with serving(FakeBackend(tiny_tokenizer()), ServerConfig(uds=path)) as other:
            pass
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()
    assert other.endswith("engine.sock")


async def test_a_port_in_use_says_so(server) -> None:
    _, port = server.host_and_port
    assert f"--port {port} is in use" in await refused(ServerConfig(port=port))
    assert "no address of this machine" in await refused(ServerConfig(host="192.0.2.1", port=0, api_key="k"))


@pytest.mark.parametrize("config", [ServerConfig(port=0, max_connections=2)])
async def test_one_connection_too_many_is_told_to_come_back(server) -> None:
    async with connected(server.address) as first, connected(server.address) as second:
        for wire in (first, second):
            await wire.send(get("/health"))
            assert (await wire.answer()).status == 200
        async with connected(server.address) as third:
            answer = await third.answer()
            assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (429, "BUSY", "1")
            assert await third.reader.read() == b""
        await first.send(get("/health"))
        assert (await first.answer()).status == 200


@pytest.mark.parametrize("config", [ServerConfig(port=0, api_key="s3cret")])
async def test_every_route_but_health_asks_for_the_key(server) -> None:
    for path, (method, _) in ROUTES.items():
        request = get(path) if method == "GET" else post(path, {})
        answer = await ask(server.address, request)
        assert (answer.status == 200) if path == "/health" else (answer.error["code"] == "UNAUTHORIZED"), path
    assert (await ask(server.address, get("/v1/models", Authorization="Bearer s3cret"))).status == 200
    wrong = await ask(server.address, get("/v1/models", Authorization="Bearer other"))
    assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")
    right = server.openai.with_options(api_key="s3cret")
    assert [model.id async for model in right.models.list()]


async def test_a_rebound_name_and_a_web_page_are_refused(server) -> None:
    answer = await ask(server.address, get("/v1/models", Host="evil.example"))
    assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    page = await ask(server.address, get("/v1/models", Origin="https://evil.example"))
    assert (page.status, page.error["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("config", [ServerConfig(port=0, api_key="k", allowed_hosts=("engine.example",))])
async def test_a_name_that_was_allowed_is_served(server) -> None:
    key = {"Authorization": "Bearer k"}
    assert (await ask(server.address, get("/v1/models", Host="engine.example:80", **key))).status == 200
    assert (await ask(server.address, get("/v1/models", Host="other.example", **key))).status == 403


async def test_stopping_lets_running_requests_end(backend: FakeBackend) -> None:
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()

    async def script(request):
        yield numbered(request, 0, 0)
        await go_on.wait()
        for step in range(1, request.params.max_tokens):
            yield numbered(request, 0, step)

    backend.script = script
    running = asyncio.create_task(serve(backend, ServerConfig(port=0), stop, ready=address.set_result))
    async with connected(await address) as wire:
        await wire.post(COMPLETIONS, STREAM | {"max_tokens": 5})
        await wire.head()
        stop.set()
        while backend.state is not HealthState.DRAINING:
            await asyncio.sleep(0)

        health = await ask(address.result(), get("/health"))
        assert (health.status, health.json["status"]) == (503, "draining")
        late = await ask(address.result(), post(COMPLETIONS, STREAM))
        assert (late.status, late.error["code"], late.headers["retry-after"]) == (503, "DRAINING", "3")

        go_on.set()
        events = b"".join([chunk async for chunk in wire.chunks()]).decode().split("\n\n")[:-1]
    assert events[-1] == "data: [DONE]"
    await running
    assert backend.graces == [30.0]


async def test_what_outlives_the_grace_ends_with_an_error(backend: FakeBackend) -> None:
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def endless(request):
        while True:
            yield numbered(request, 0, 0)
            await asyncio.sleep(0)

    backend.script = endless
    running = asyncio.create_task(serve(backend, ServerConfig(port=0), stop, ready=address.set_result))
    async with connected(await address) as wire, connected(await address) as whole:
        await wire.post(COMPLETIONS, STREAM)
        await wire.head()
        await whole.post(COMPLETIONS, STREAM | {"stream": False})
        await backend.begun(2)
        stop.set()
        while not backend.graces:
            await asyncio.sleep(0)
        # A second signal ends the grace.
        stop.set()
        last = [chunk async for chunk in wire.chunks()][-1].decode().split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "DRAINING"
        answer = await whole.answer()
        assert (answer.status, answer.error["code"]) == (503, "DRAINING")
    await running
    assert backend.graces == [30.0, 0]


async def test_signals_set_the_stop(backend: FakeBackend) -> None:
    stop = asyncio.Event()
    with stopping_on_signals(stop):
        for number in (signal.SIGTERM, signal.SIGINT):
            stop.clear()
            os.kill(os.getpid(), number)
            await stop.wait()


PROCESS = """
import asyncio, sys
from pathlib import Path
from support.engine_backend import FakeBackend, numbered
from openlora_engine.server.options import ServerConfig
from openlora_engine.server.serve import serve, stopping_on_signals

class NoTokenizer:
    chat_template = None
    class backend_tokenizer:
        decoder = None
    def get_vocab(self):
        return {"a": 0}

async def endless(request):
    while True:
        yield numbered(request, 0, 0)
        await asyncio.sleep(0.001)

async def main():
    backend = FakeBackend(NoTokenizer())
    backend.script = endless
    stop = asyncio.Event()
    config = ServerConfig(uds=Path(sys.argv[1]), drain_timeout_s=float(sys.argv[2]))
    with stopping_on_signals(stop):
        await serve(backend, config, stop, ready=lambda address: print(address, flush=True))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_sigterm_in_mid_stream_ends_the_stream_and_the_process(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, str(path), "0.1"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        async with connected(address) as wire:
            await wire.post(COMPLETIONS, STREAM | {"prompt": [1, 2, 3]})
            await wire.head()
            process.send_signal(signal.SIGTERM)
            answer = b"".join([chunk async for chunk in wire.chunks()]).decode().split("\n\n")[-2]
        assert json.loads(answer.removeprefix("data: "))["error"]["code"] == "DRAINING"
        assert await process.wait() == 0
        assert not path.exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
