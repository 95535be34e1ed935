"""anvil, where it is installed, as the development chain: found, started as a child, stopped with us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from ..errors import ChainError, ChainErrorCode
from ..rpc import Rpc
from .accounts import DEVNET_CHAIN_ID
from .bridge import LOOPBACK

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
STATE_INTERVAL_S = 5


def find_anvil(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The anvil binary on PATH, None without one."""
    found = shutil.which("anvil", path=environment.get("PATH"))
    return Path(found) if found else None


class Anvil:
    """A running anvil. Its state is kept in `state` across restarts; a kill −9 loses the newest seconds at most."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url
        # Its log goes to a pipe; unread, a full pipe would stop it.
        self._drain = asyncio.create_task(_drain(process), name="anvil-log")

    @classmethod
    async def start(
        cls,
        binary: Path,
        *,
        port: int = 0,
        state: Path | None = None,
        arguments: tuple[str, ...] = (),
        chain_id: int = DEVNET_CHAIN_ID,
    ) -> Anvil:
        """Start and wait until it answers. Raises ChainError DEVNET_FAILED, DEVNET_RUNNING."""
        command = [str(binary), "--host", LOOPBACK, "--port", str(port), "--chain-id", str(chain_id), "--accounts", "0"]
        command += ["--no-cors", *arguments]
        if state is not None:
            command += [
                "--state",
                str(state),
                "--state-interval",
                str(STATE_INTERVAL_S),
                "--preserve-historical-states",
            ]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                url = await _listening_at(process)
        except TimeoutError:
            await cls(process, "").stop()
            raise ChainError(ChainErrorCode.DEVNET_FAILED, "anvil did not start in time") from None
        return cls(process, url)

    async def fund(self, rpc: Rpc, accounts: Mapping[str, bytes], wei: int) -> None:
        """Set balances that are still zero."""
        for account in accounts.values():
            if await rpc.balance(account) == 0:
                await rpc.request("anvil_setBalance", f"0x{account.hex()}", hex(wei))

    async def stop(self) -> None:
        """Interrupt, so that it writes its state; kill if that takes too long."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._drain


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(65_536):
        pass


async def _listening_at(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        text = line.decode("utf-8", "replace")
        if "Listening on" in text:
            return f"http://{text.rsplit(' ', 1)[-1].strip()}"
    await process.wait()
    raise ChainError(ChainErrorCode.DEVNET_FAILED, f"anvil ended with status {process.returncode}: is the port free?")
