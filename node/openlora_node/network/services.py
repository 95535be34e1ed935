"""Runs a libp2p service (swarm, gossip, directory) so that a bug in a task of it ends that task and not the host."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.tools.anyio_service import Service
from libp2p.tools.anyio_service.trio_manager import TrioManager

DAEMON_PAUSE_S = 1.0

logger = logging.getLogger(__name__)


class ContainedManager(TrioManager):
    """A service's task that raises ends its service, and that its host; here it is logged, and run again if it must."""

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        """Start a task of the service."""

        async def contained(*args: Any) -> None:
            while True:
                try:
                    await async_fn(*args)
                except Exception:
                    logger.exception("a task of %s failed", type(self._service).__name__)
                if not daemon:
                    return
                await trio.sleep(DAEMON_PAUSE_S)

        run = async_fn if _internal else contained
        name = name or getattr(async_fn, "__name__", None)
        super().run_task(run, *args, daemon=daemon, name=name, _internal=_internal)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Run a service for as long as the block lasts. One that ends before ends the block: the host starts again then."""

    async def run() -> None:
        await manager.run()
        raise RuntimeError(f"{type(service).__name__} ended by itself")

    async with trio.open_nursery() as nursery:
        manager = ContainedManager(service)
        service._manager = manager
        nursery.start_soon(run)
        await manager.wait_started()
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
