"""Where the server listens: a Unix socket that is its user's alone, or an address and port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from ..config import invalid
from .options import ServerConfig

BACKLOG = 1024
SEND_BUFFER = 64 << 10
"""Bytes the kernel holds for a client that lags (it doubles them): a stalled one pauses its sequence soon."""


class Listener:
    """A listening socket and the place it can be reached at."""

    def __init__(self, server: asyncio.Server, address: str, uds: tuple[Path, int] | None = None) -> None:
        self.address = address
        """`http://127.0.0.1:8000` or `unix:/run/openlora/engine.sock`."""
        self._server = server
        self._uds = uds

    async def close(self) -> None:
        """Accept no more; connections that exist stay. Removes the Unix socket if it is still this one."""
        self._server.close()
        if self._uds is not None:
            path, inode = self._uds
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()


async def listen(protocol: Callable[[], asyncio.Protocol], config: ServerConfig) -> Listener:
    """Listen as the configuration says. Raises EngineError CONFIG_INVALID where that cannot be."""
    if config.uds is not None:
        return await _listen_unix(protocol, config.uds)
    return await _listen_tcp(protocol, config.host, config.port)


async def _listen_tcp(protocol: Callable[[], asyncio.Protocol], host: str, port: int) -> Listener:
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(protocol, host, port, backlog=BACKLOG, start_serving=False)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise invalid("port", f"{port} is in use: stop what listens there, or choose another") from None
        if error.errno == errno.EACCES:
            raise invalid("port", f"{port} needs privileges: choose one above 1023") from None
        raise invalid("host", f"{host!r} is no address of this machine") from None
    for sock in server.sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    await server.start_serving()
    bound, port = server.sockets[0].getsockname()[:2]
    return Listener(server, f"http://[{bound}]:{port}" if ":" in bound else f"http://{bound}:{port}")


async def _listen_unix(protocol: Callable[[], asyncio.Protocol], path: Path) -> Listener:
    sock, inode = _bind_unix(path)
    server = await asyncio.get_running_loop().create_unix_server(protocol, sock=sock, backlog=BACKLOG)
    return Listener(server, f"unix:{path}", (path, inode))


def _bind_unix(path: Path) -> tuple[socket.socket, int]:
    """Bound under another name, closed to others, then moved into place: at no moment may anyone else connect."""
    _check_stale(path)
    temporary = path.with_name(f".{os.getpid()}.tmp")
    sock = socket.socket(socket.AF_UNIX)
    try:
        temporary.unlink(missing_ok=True)
        sock.bind(str(temporary))
        temporary.chmod(0o600)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.listen(BACKLOG)
        temporary.rename(path)
        return sock, path.lstat().st_ino
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno else "no reason given"
        raise invalid("uds", f"cannot be made ({reason}): choose a path in a folder of this user") from None


def _check_stale(path: Path) -> None:
    """Only a socket that nobody listens on may be replaced. Raises CONFIG_INVALID."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError:
        raise invalid("uds", "is in a folder that cannot be read: choose another") from None
    if not stat.S_ISSOCK(mode):
        raise invalid("uds", "is a file that is no socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass
    raise invalid("uds", "is a socket that another process listens on: stop it, or choose another path")
