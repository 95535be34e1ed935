"""Who takes part in the demo, and their key files: the devnet's named accounts, whose keys are public."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from openlora_chain import keystore
from openlora_chain.devnet.accounts import dev_wallet
from openlora_chain.password import Password
from openlora_chain.wallet import Wallet

ROLES = {
    "operator": "owner",
    "operator 2": "operator-2",
    "base owner": "base-owner",
    "pirate's owner": "adapter-owner",
    "haiku's, json's owner": "adapter-owner-2",
    "datasets' owner": "dataset-owner",
    "contributor 1": "contributor-1",
    "contributor 2": "contributor-2",
    "contributor 3": "contributor-3",
    "treasury": "treasury",
}
"""Who may earn, and the account that it is."""
WORK_FACTOR = 1 << 12
"""Of the key files: these keys are secrets to nobody."""


@dataclass(frozen=True)
class People:
    """Key files of those who send something, one password for all."""

    folder: Path
    password_file: Path

    @classmethod
    async def settle_in(cls, home: Path) -> Self:
        """Write the key files."""
        people = cls(home / "keys", home / "keys" / "password")
        people.folder.mkdir(mode=0o700)
        descriptor = os.open(people.password_file, os.O_CREAT | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("demo")
        names = ("owner", "operator-2", "payer", "deployer")
        await asyncio.gather(*(people._store(name) for name in names))
        return people

    async def _store(self, name: str) -> None:
        secret = dev_wallet(name).reveal()
        await keystore.store(self.key(name), secret, Password("demo"), work_factor=WORK_FACTOR)

    def key(self, name: str) -> Path:
        """The key file of an account."""
        return self.folder / f"{name}.json"

    def sends(self, name: str) -> tuple[str, ...]:
        """Options with which an account sends a transaction."""
        return ("--key", str(self.key(name)), "--password-file", str(self.password_file), "--yes")

    @staticmethod
    def wallet(name: str) -> Wallet:
        """The wallet of an account."""
        return dev_wallet(name)

    @staticmethod
    def earners() -> dict[str, bytes]:
        """Role → address of everybody who may earn."""
        return {role: dev_wallet(account).address for role, account in ROLES.items()}
