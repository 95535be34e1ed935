"""Runs nouns of the command line against a chain, as a user would: real key files, real options, real exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from openlora_chain import keystore
from openlora_chain.password import Password
from openlora_chain.wallet import Wallet
from openlora_node.cli.app import app

PASSWORD = "correct horse"


@dataclass
class ChainCli:
    """`openlora` in a directory of its own, on one chain."""

    folder: Path
    url: str
    deployment: Path

    def __post_init__(self) -> None:
        self.password = self.folder / "password"
        self.password.write_text(PASSWORD + "\n")
        self.password.chmod(0o600)

    @property
    def control_socket(self) -> Path:
        """Where a node of this home would listen."""
        return self.folder / "home" / "devnet" / "control.sock"

    async def key(self, wallet: Wallet, name: str) -> Path:
        """A key file of this wallet, cheap to open."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            await keystore.store(path, wallet.reveal(), Password(PASSWORD), work_factor=1 << 12)
        return path

    async def run(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error, through the root command as the shell calls it."""
        result = await asyncio.to_thread(CliRunner().invoke, app, self._line(arguments))
        return result.exit_code, result.stdout, result.stderr

    async def process(self, *arguments: object) -> tuple[int, str, str]:
        """The same as a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENLORA_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from openlora_node.cli import main; main()", *self._line(arguments),
            env={**environment, "HOME": str(self.folder)},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    def _line(self, arguments: tuple[object, ...]) -> list[str]:
        home = f"node.data_dir={self.folder / 'home'}"
        chain = ("--rpc", self.url, "--deployment", str(self.deployment), "--set", home)
        return [*map(str, arguments), *chain]

    async def json(self, *arguments: object, status: int = 0) -> Any:
        """The JSON that a command prints."""
        code, output, errors = await self.run(*arguments, "--json")
        assert code == status, (code, output, errors)
        return json.loads(output)

    async def json_alone(self, *arguments: object) -> Any:
        """The same for a command that asks no chain."""
        line = [*map(str, arguments), "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, line)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)
