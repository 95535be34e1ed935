"""The daemon as a process: its logs, its limits, its signals, and that nobody reads the key out of its memory."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..config.schema import Config
from .logs import set_up_logs
from .node import Node
from .supervisor import Reason

WANTED_FILES = 65_536
PR_SET_DUMPABLE = 4

logger = logging.getLogger(__name__)


async def run_node(config: Config) -> Reason:
    """Run a node until a signal or a fault ends it. Raises OpenLoraError for what keeps it from starting."""
    set_up_logs(config.log.level, config.log.format)
    protect_process()
    node = Node(config)
    with _signals(node):
        return await node.run()


def protect_process() -> None:
    """No core dumps and no other process of this user in our memory, where the node key is; descriptors to spare."""
    with suppress(ValueError, OSError):  # a sandbox may forbid it, and has set it then
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _signals(node: Node) -> Iterator[None]:
    """SIGTERM and SIGINT drain and stop; the second at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, node.stop, signal.Signals(number).name)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # it has stopped: one more must not make the exit look like a crash
