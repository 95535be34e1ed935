"""sd_notify: the datagrams that a service manager gets, and silence without one."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from openlora_node.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    return listener


def test_the_manager_hears_ready_status_stopping_and_life(manager: socket.socket, tmp_path: Path) -> None:
    with manager:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notifier.listens
        notifier.ready("serving\nat last")
        notifier.status("busy")
        notifier.alive()
        notifier.stopping("SIGTERM")
        heard = [manager.recv(1000).decode() for _ in range(4)]
    assert heard == ["READY=1\nSTATUS=serving at last", "STATUS=busy", "WATCHDOG=1", "STOPPING=1\nSTATUS=SIGTERM"]


def test_an_abstract_socket_is_one_too() -> None:
    name = f"openlora-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert listener.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/notify"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    Notifier(environment).ready("serving")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_meant_for_this_process_or_not_at_all(environment: dict[str, str], seconds: float) -> None:
    assert Notifier(environment).watchdog_s == seconds


async def test_the_watch_gives_signs_of_life_and_status_once_a_change(manager: socket.socket, tmp_path: Path) -> None:
    with manager:
        manager.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000"})
        told = ["one", "one", "two"]
        task = asyncio.create_task(notifier.watch(lambda: told.pop(0) if len(told) > 1 else told[0]))
        heard: list[str] = []
        while "STATUS=two" not in heard:
            heard.append((await asyncio.get_running_loop().sock_recv(manager, 1000)).decode())
        task.cancel()
    assert heard[:2] == ["WATCHDOG=1", "STATUS=one"]
    assert heard.count("STATUS=one") == 1
    assert heard.count("WATCHDOG=1") >= 3
