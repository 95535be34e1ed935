"""HTTP to the byte over a plain socket: requests that no client would send, and readers that stop reading."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """One response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        """The data of a stream's events."""
        return [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> None:
        """Send a request; does not wait for the answer."""
        await self.send(post(path, body, **headers))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = text.split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split()[1]), headers

    async def answer(self) -> Answer:
        """The next response, whole."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join([chunk async for chunk in self.chunks()]))
        length = headers.get("content-length")
        body = await (self.reader.read() if length is None else self.reader.readexactly(int(length)))
        return Answer(status, headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a chunked body."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)


def post(path: str, body: bytes | dict[str, Any], **headers: str) -> bytes:
    """A request's bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Host": "localhost", "Content-Length": str(len(data))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def get(path: str, **headers: str) -> bytes:
    """A request's bytes."""
    lines = "".join(
        f"{name.replace('_', '-')}: {value}\r\n" for name, value in ({"Host": "localhost"} | headers).items()
    )
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


@asynccontextmanager
async def connected(address: str, *, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """A connection to `http://HOST:PORT` or `unix:PATH`; a small receive buffer makes a lagging reader felt soon."""
    sock = socket.socket(socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET)
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    host, _, port = address.removeprefix("http://").rpartition(":")
    place: Any = address.removeprefix("unix:") if address.startswith("unix:") else (host, int(port))
    await asyncio.get_running_loop().sock_connect(sock, place)
    # The limit of asyncio's own buffer: what this reader does not read stays in the kernel.
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 12)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(address: str, request: bytes) -> Answer:
    """One request on a connection of its own."""
    async with connected(address) as wire:
        await wire.send(request)
        return await wire.answer()
