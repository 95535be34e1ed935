"""A disk that is full, and one that is read-only: real mounts in a mount namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]

FULL = """
import asyncio, os, pathlib
from support.journal import admit, key_of, open_journal, request
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

async def main(home):
    async with open_journal(home / "journal.sqlite") as journal:
        with open(home / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    assert ballast.write(bytes(4096))
            except OSError:
                pass
        admitted = 0
        try:
            while admitted < 10_000:
                await admit(journal, request(admitted))
                admitted += 1
        except OpenLoraError as error:
            assert error.code is ErrorCode.STORAGE_FULL, error
        else:
            raise AssertionError("the disk never filled")
        assert (await journal.ledger(key_of())).reserved == 1_000 * admitted
        os.unlink(home / "ballast")
        await journal.check_integrity(deep=True)
        for nonce in range(admitted, admitted + 3):
            await admit(journal, request(nonce))
    async with open_journal(home / "journal.sqlite") as journal:
        await journal.check_integrity(deep=True)
        assert (await journal.ledger(key_of())).reserved == 1_000 * (admitted + 3)
    print("ok")

asyncio.run(main(pathlib.Path(os.environ["HOME_DIR"])))
"""

READ_ONLY = """
import os, pathlib
from support.journal import open_journal
from openlora_node.datadir import DataDir
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

home = pathlib.Path(os.environ["HOME_DIR"])
for action in (lambda: open_journal(home / "journal.sqlite"), lambda: open_journal(home / "new.sqlite"),
               lambda: DataDir.open(home), lambda: DataDir.open(home / "new")):
    try:
        action()
    except OpenLoraError as error:
        assert error.code is ErrorCode.STORAGE_READ_ONLY, error
        assert str(home) not in error.message
    else:
        raise AssertionError("it opened")
print("ok")
"""


def run_mounted(script: str, mount: str, home: Path) -> None:
    """Run a script in a namespace where `mount` (a shell command) has been done."""
    home.chmod(0o700)
    done = subprocess.run(
        [*UNSHARE, "sh", "-ec", f'{mount}\nexec "$0" -c "$1"', sys.executable, script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS), "HOME_DIR": str(home)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


def test_a_full_disk_refuses_clearly_corrupts_nothing_and_works_again_with_room(tmp_path: Path) -> None:
    run_mounted(FULL, 'mount -t tmpfs -o size=2m,mode=700 none "$HOME_DIR"', tmp_path)


async def test_a_read_only_disk_is_named_as_such(tmp_path: Path) -> None:
    from support.journal import open_journal

    async with open_journal(tmp_path / "journal.sqlite"):
        pass
    run_mounted(READ_ONLY, 'mount --bind "$HOME_DIR" "$HOME_DIR"\nmount -o remount,bind,ro "$HOME_DIR"', tmp_path)
