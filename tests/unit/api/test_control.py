"""The control API: its socket is its user's alone, parameters are checked, errors arrive as what they are."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from openlora_node.api.client import ControlClient
from openlora_node.api.control import Command, Parameters, control_app, text_of, whole_of
from openlora_node.api.listeners import listen_unix
from openlora_node.protocol.errors import ErrorCode, OpenLoraError


async def echo(parameters: Parameters) -> object:
    return dict(parameters)


async def refuse(_: Parameters) -> object:
    raise OpenLoraError(ErrorCode.BUSY, "later", retry_after_ms=1500)


async def fail(_: Parameters) -> object:
    raise ValueError("hunter22")


async def count(parameters: Parameters) -> object:
    return {"count": whole_of(parameters, "count", 3, high=10), "name": text_of(parameters, "name", "x")}


COMMANDS = (
    Command("GET", "/v1/echo", echo),
    Command("POST", "/v1/echo/{name}", echo),
    Command("POST", "/v1/refuse", refuse),
    Command("POST", "/v1/fail", fail),
    Command("PUT", "/v1/count", count),
)


@pytest_asyncio.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "control.sock"
    listener = await listen_unix(control_app(COMMANDS), path)
    yield path
    await listener.close()


async def test_the_socket_is_its_users_alone(socket: Path) -> None:
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


async def test_questions_and_orders_get_their_parameters(socket: Path) -> None:
    async with ControlClient(socket) as client:
        assert await client.get("/v1/echo", limit=3) == {"limit": "3"}
        assert await client.post("/v1/echo/blue", deep={"x": 1}) == {"deep": {"x": 1}, "name": "blue"}
        assert await client.put("/v1/count", count="7") == {"count": 7, "name": "x"}


async def test_errors_arrive_as_what_they_are(socket: Path) -> None:
    async with ControlClient(socket) as client:
        with pytest.raises(OpenLoraError) as caught:
            await client.post("/v1/refuse")
        assert (caught.value.code, caught.value.message, caught.value.retry_after_ms) == (ErrorCode.BUSY, "later", 1500)
        with pytest.raises(OpenLoraError) as caught:
            await client.get("/v1/nothing")
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_fault_of_ours_leaves_without_its_text(socket: Path) -> None:
    async with ControlClient(socket) as client:
        with pytest.raises(OpenLoraError) as caught:
            await client.post("/v1/fail")
    assert caught.value.code is ErrorCode.INTERNAL
    assert "hunter22" not in caught.value.message


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"count": true}', b'{"count": 11}', b'{"name": 1}', b'{"count":-1}'])
async def test_bad_parameters_are_named(socket: Path, body: bytes) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.put("http://node/v1/count", data=body) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "MALFORMED"


async def test_a_large_body_is_refused(socket: Path) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.put("http://node/v1/count", data=b"x" * 100_000) as answer,
    ):
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "FRAME_TOO_LARGE"


async def test_without_a_node_the_client_says_so(tmp_path: Path) -> None:
    async with ControlClient(tmp_path / "none.sock") as client:
        with pytest.raises(OpenLoraError, match="openlora run") as caught:
            await client.get("/v1/status")
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_dead_process_socket_is_replaced_and_a_live_ones_is_not(tmp_path: Path, socket: Path) -> None:
    with pytest.raises(OpenLoraError) as caught:
        await listen_unix(control_app(()), socket)
    assert caught.value.code is ErrorCode.DATADIR_LOCKED
    import socket as sockets

    stale = tmp_path / "stale.sock"
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(stale))
    listener = await listen_unix(control_app(COMMANDS), stale)
    async with ControlClient(stale) as client:
        assert await client.get("/v1/echo") == {}
    await listener.close()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(OpenLoraError) as caught:
        await listen_unix(control_app(()), path)
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert path.read_text() == "precious"
