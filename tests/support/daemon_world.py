"""A node as its operator runs it: configuration on disk, `openlora run` as a process, told of by sd_notify."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openlora_chain import keystore
from openlora_chain.password import Password
from openlora_chain.wallet import Wallet
from openlora_node.api.client import ControlClient

from .chain_world import fresh_wallet

PASSWORD = "opensesame"
COMMAND = (sys.executable, "-P", "-c", "import sys; from openlora_node.cli import main; sys.exit(main())")
START_S = 90.0


def tiny_model(folder: Path, **changes: Any) -> Path:
    """A random llama with a tokenizer: small enough to load in a moment. `changes` make it another base."""
    from .engine_tokenizer import tiny_tokenizer
    from .engine_world import llama

    llama(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@dataclass
class NodeHome:
    """One node's files, as `openlora init` makes them, with a key that opens at once."""

    root: Path
    wallet: Wallet
    settings: dict[str, dict[str, Any]]
    node: bytes = bytes(32)
    """Its id, once it is registered."""

    @classmethod
    async def make(cls, root: Path, label: str, url: str, deployment: Path, **sections: dict[str, Any]) -> NodeHome:
        """`sections` go over what every test node has: no fixed port, an engine by itself, an empty network."""
        wallet = fresh_wallet(f"daemon {label}")
        root.mkdir(mode=0o700, parents=True)
        password = root / "password"
        password.write_text(f"{PASSWORD}\n")
        password.chmod(0o600)
        (root / "keys").mkdir(mode=0o700)
        await keystore.store(root / "keys/node.json", wallet.reveal(), Password(PASSWORD), work_factor=2)
        settings: dict[str, dict[str, Any]] = {
            "node": {"data_dir": str(root / "data")},
            "keys": {"keystore_file": str(root / "keys/node.json"), "password_file": str(password)},
            "chain": {
                "rpc_urls": [url], "deployment_file": str(deployment), "confirmations": 0, "poll_interval": "200ms",
            },
            "network": {"listen": ["/ip4/127.0.0.1/tcp/0"], "relay": "off"},
            "engine": {"spawn": False, "socket": str(root / "engine.sock"), "grace": "5s"},
            "artifacts": {"cache_size": "64MiB"},
            "api": {"health_listen": "127.0.0.1:0", "control_socket": str(root / "control.sock")},
        }  # fmt: skip
        for name, values in sections.items():
            settings.setdefault(name, {}).update(values)
        home = cls(root, wallet, settings)
        home.write()
        return home

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.root / "node.yaml"

    @property
    def state(self) -> Path:
        """The network's directory."""
        return self.root / "data/devnet"

    def write(self) -> None:
        """Put the settings on disk."""
        self.config.write_text(yaml.safe_dump(self.settings))


@dataclass
class NodeProcess:
    """A running `openlora run`. `heard` is what it told its service manager, in order."""

    home: NodeHome
    process: asyncio.subprocess.Process
    manager: socket.socket
    heard: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status_line(self) -> str:
        """The newest STATUS."""
        return next((line[7:] for line in reversed(self.heard) if line.startswith("STATUS=")), "")

    @property
    def log(self) -> str:
        """Everything that it wrote."""
        return (self.home.root / "log").read_text()

    async def until(self, met: Callable[[str], bool], timeout_s: float = START_S) -> str:
        """Wait until a status line meets the condition; gives it. Fails with the log when that does not come."""
        try:
            async with asyncio.timeout(timeout_s):
                while not met(self.status_line):
                    if self.process.returncode is not None:
                        raise AssertionError(f"the node ended with {self.process.returncode}:\n{self.log[-6000:]}")
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            raise AssertionError(f"still {self.status_line!r} after {timeout_s} s:\n{self.log[-6000:]}") from None
        return self.status_line

    async def listen(self) -> None:
        """Take what the node tells, as a service manager does: what nobody takes is lost. Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            message = (await loop.sock_recv(self.manager, 4096)).decode()
            self.heard += message.splitlines()
            self.news.set()

    async def watch_end(self) -> None:
        """Wake who waits when the process ends."""
        await self.process.wait()
        self.news.set()

    async def until_serving(self, timeout_s: float = START_S) -> None:
        """Wait until it serves."""
        await self.until(lambda line: line.startswith("serving"), timeout_s)

    async def ask(self, path: str, **query: str) -> Any:
        """A question over the control socket."""
        async with ControlClient(self.home.root / "control.sock") as client:
            return await client.get(path, **query)

    async def order(self, path: str, **body: Any) -> Any:
        """An order over the control socket."""
        async with ControlClient(self.home.root / "control.sock") as client:
            return await client.post(path, **body)

    def services(self, status: dict[str, Any]) -> dict[str, str]:
        """Service → level."""
        return {service["name"]: service["level"] for service in status["services"]}

    async def end(self, timeout_s: float = 60.0) -> int:
        """Wait for the end that was asked for; the exit code."""
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Signal and wait; the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.end(timeout_s)


@asynccontextmanager
async def running_node(
    home: NodeHome, *, command: Sequence[str] = (), **environment: str
) -> AsyncIterator[NodeProcess]:
    """Start `openlora run`, or `command` of openlora; killed at the end if it has not ended."""
    notify = home.root / "notify"
    notify.unlink(missing_ok=True)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(notify))
    manager.setblocking(False)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OPENLORA_")}
    with (home.root / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *(command or ("run", "--config", str(home.config))), stdout=log, stderr=log,
            env=inherited | {"NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": "900000", **environment},
        )  # fmt: skip
    node = NodeProcess(home, process, manager)
    tasks = [asyncio.create_task(node.listen()), asyncio.create_task(node.watch_end())]
    try:
        yield node
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        manager.close()


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it printed under --json."""
        return json.loads(self.stdout)


async def openlora(*arguments: str) -> Outcome:
    """A command in this process, in a thread: starting Python anew takes longer than most of them."""
    from typer.testing import CliRunner

    from openlora_node.cli.app import app

    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    return Outcome(result.exit_code, result.stdout, result.stderr)


async def openlora_process(*arguments: str, timeout_s: float = 90.0) -> Outcome:
    """The command line as a person or a script runs it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENLORA_")}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())
