"""What systemd wants to be told: ready, stopping, alive, and a line of status. A datagram each; silent without it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

MAX_STATUS = 200
STATUS_S = 10.0
"""Between looks at the status line, at most."""


class Notifier:
    """Speaks sd_notify to NOTIFY_SOCKET. Raises nothing: a service manager that went away is no reason to stop."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment)
        """Within which time the manager wants a sign of life; 0 for never."""

    @property
    def listens(self) -> bool:
        """Whether somebody started this process who wants to be told."""
        return self._address[:1] in ("/", "@")

    def ready(self, status: str) -> None:
        """The service works."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> bool:
        """One line for `systemctl status`; whether it was taken."""
        return self._send(f"STATUS={_line(status)}")

    def stopping(self, status: str) -> None:
        """The service is on its way down."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    async def watch(self, status: Callable[[], str]) -> None:
        """Signs of life and fresh status, from the event loop: one that hangs gives none. Until cancelled."""
        told = ""
        while True:
            self.alive()
            if (now := status()) != told and self.status(now):
                told = now
            await asyncio.sleep(min(STATUS_S, self.watchdog_s / 3) if self.watchdog_s else STATUS_S)

    def _send(self, message: str) -> bool:
        if not self.listens:
            return True
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            manager.sendto(message.encode(), address)
            return True
        return False  # its queue is full, or it is gone: the next sign of life tries again


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS]


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """WATCHDOG_USEC, if it is meant for this process."""
    try:
        if int(environment.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return 0.0
        return max(0, int(environment.get("WATCHDOG_USEC", "0"))) / 1_000_000
    except ValueError:
        return 0.0
