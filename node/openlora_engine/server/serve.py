"""The server's life: listen, serve until told to stop, let running requests end within their grace, go."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from .app import App
from .backend import Backend
from .connection import Connections
from .listener import listen
from .options import ServerConfig

FLUSH_S = 5.0
"""Time for clients to take their last bytes once no request runs any more."""
SPARE_FILES = 512
"""File descriptors beside the connections: adapters being read, libraries, pipes."""


@asynccontextmanager
async def serving(backend: Backend, config: ServerConfig) -> AsyncIterator[str]:
    """Serve within the block; gives the address. On leaving, connections are closed whatever they do.

    Raises EngineError CONFIG_INVALID where the configured place cannot be listened on.
    """
    _raise_file_limit(config.max_connections + SPARE_FILES)
    app = App(backend, config)
    connections = Connections(app.handle, config.max_connections)
    try:
        listener = await listen(connections, config)
        try:
            yield listener.address
        finally:
            await listener.close()
            connections.pre_shutdown()
            await connections.shutdown(FLUSH_S)
    finally:
        app.close()


async def serve(
    backend: Backend, config: ServerConfig, stop: asyncio.Event, *, ready: Callable[[str], None] = lambda _address: None
) -> None:
    """Serve until `stop` is set, then drain: new requests get DRAINING, running ones the configured grace.

    `ready` is called with the address once connections are accepted. Setting `stop`, clearing it and setting it again
    (a second signal) ends the grace.
    """
    async with serving(backend, config) as address:
        ready(address)
        await stop.wait()
        stop.clear()
        drained = asyncio.create_task(backend.drain(config.drain_timeout_s), name="drain")
        again = asyncio.create_task(stop.wait(), name="second stop")
        try:
            await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                await backend.drain(0)
            await drained
        finally:
            again.cancel()
            drained.cancel()


@contextmanager
def stopping_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM and SIGINT within the block."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _raise_file_limit(wanted: int) -> None:
    """Many systems start processes with 1,024 descriptors and allow far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
