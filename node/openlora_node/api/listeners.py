"""Listening: a Unix socket of mode 0600, a TCP port, with or without TLS; bound, named, closed in order."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import stat
from pathlib import Path

from aiohttp import web

from ..config.endpoints import HostPort
from ..protocol.errors import ErrorCode, OpenLoraError
from .answers import error_body

BACKLOG = 128
MAX_CONNECTIONS = 512
KEEPALIVE_S = 75.0
SHUTDOWN_S = 2.0


class Listener:
    """One application behind one address. `address` is where it listens, with the port that it got."""

    def __init__(self, runner: web.AppRunner, address: str, server: asyncio.Server | None = None) -> None:
        self._runner = runner
        self._server = server
        self.address = address

    def __repr__(self) -> str:
        return f"Listener({self.address})"

    async def close(self) -> None:
        """Take no more connections, give those at work two seconds, close."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


class Full(asyncio.Protocol):
    """What answers when as many connections are open as allowed: a refusal in HTTP, then the end."""

    def __init__(self, body: bytes | None = None) -> None:
        busy = OpenLoraError(ErrorCode.BUSY, "too many connections are open: close some")
        self._body = json.dumps(error_body(busy)).encode() if body is None else body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse and close."""
        assert isinstance(transport, asyncio.WriteTransport)
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        transport.write(f"{head}Content-Length: {len(self._body)}\r\nConnection: close\r\n\r\n".encode() + self._body)
        transport.close()


async def listen_unix(app: web.Application, path: Path) -> Listener:
    """Listen on a socket that this user alone can open. Raises CONFIG_INVALID where something else is in the way."""
    await asyncio.to_thread(_clear, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The mode is in place before anyone can connect: a socket takes connections from listen() on.
        listener.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101 - no wait
        runner = await _runner(app)
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
    except OSError:
        listener.close()
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, f"{path.name} cannot be listened on: check its directory"
        ) from None
    return Listener(runner, str(path))


async def listen_tcp(
    app: web.Application,
    place: HostPort,
    tls: ssl.SSLContext | None = None,
    *,
    cancels: bool = False,
    max_connections: int = MAX_CONNECTIONS,
) -> Listener:
    """Listen on a port; with `cancels` a client that leaves ends its handler. Raises CONFIG_INVALID."""
    runner = await _runner(app, cancels=cancels)
    serve = runner.server
    assert serve is not None

    def connection() -> asyncio.BaseProtocol:
        return Full() if len(serve.connections) >= max_connections else serve()

    try:
        server = await asyncio.get_running_loop().create_server(
            connection, place.host, place.port, ssl=tls, backlog=BACKLOG
        )
    except OSError:
        await runner.cleanup()
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, f"{place} cannot be listened on: another program has it, or it is not ours"
        ) from None
    host, port = server.sockets[0].getsockname()[:2]
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    return Listener(runner, url, server)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later. Raises CONFIG_INVALID for files that do not fit, KEY_FAILED for a key that others can read."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # systemd keeps these private by an ACL, which shows as a bit
    try:
        if key.stat().st_mode & 0o077 and not (credentials and key.is_relative_to(credentials)):
            raise OpenLoraError(ErrorCode.KEY_FAILED, "api.tls_key_file can be read by others: chmod 600 it")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID,
            "api.tls_certificate_file and api.tls_key_file are not a PEM pair that we can read",
        ) from None
    return context


async def _runner(app: web.Application, *, cancels: bool = False) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        handler_cancellation=cancels,
    )
    await runner.setup()
    return runner


def _clear(path: Path) -> None:
    """Remove the socket of a process that is gone; refuse to take a live one's place, or a file's."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError:
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, f"{path.name} cannot be listened on: check its directory"
        ) from None
    if not stat.S_ISSOCK(mode):
        raise OpenLoraError(ErrorCode.CONFIG_INVALID, f"{path.name} is a file: name another path for the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            os.unlink(path)  # noqa: PTH108 - the name itself, not what it may point at
            return
    raise OpenLoraError(ErrorCode.DATADIR_LOCKED, f"another process listens on {path.name}: stop it first")
