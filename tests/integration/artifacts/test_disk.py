"""A disk that fills up under an import and under a fetch: a real mount in a mount namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]

FULL = """
import asyncio, os, pathlib
import openlora_node.network
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.artifacts_folders import ABOUT, adapter_folder, chunks
from support.artifacts_peers import node, open_store

async def refuses(work, code=ErrorCode.STORAGE_FULL):
    try:
        await work
    except OpenLoraError as error:
        assert error.code is code, error
    else:
        raise AssertionError("nothing was refused")

async def main(home, outside):
    root = home / "store"
    with open_store(root, 1 << 30) as store, open_store(outside / "other", 1 << 30) as other:
        small = await store.add_folder(adapter_folder(outside / "small"), "adapter", ABOUT)
        store.pin(small)
        large = adapter_folder(outside / "large", chunks(48))  # 12 MiB on a disk of 8
        await refuses(store.add_folder(large, "adapter", ABOUT))
        artifact = await other.add_folder(large, "adapter", ABOUT)
        async with node(store) as a, node(other) as b:
            await a.meet(b)
            await refuses(a.fetch(artifact, b))
            assert b.sender.sent_bytes == 0, "refused before a byte came"
            fitting = await other.add_folder(adapter_folder(outside / "fitting", chunks(24), seed=5), "adapter", ABOUT)

            ballast = home / "ballast"
            def fill(done, total):
                if done > total // 3 and not ballast.exists():
                    with open(ballast, "wb", buffering=0) as file:
                        try:
                            while True:
                                file.write(bytes(4096))
                        except OSError:
                            pass
            await refuses(a.fetch(fitting, b, progress=fill))
            assert ballast.exists() and store.folder(fitting) is None
            assert await store.verify(small) == ()
            sent = b.sender.sent_bytes
            ballast.unlink()
            assert (await a.fetch(fitting, b)).is_dir()
            assert b.sender.sent_bytes - sent < chunks(20), "what came before the disk was full is not sent again"
        assert await store.verify(fitting) == ()
        assert store.ids() == {small, fitting}
    print("ok")

asyncio.run(main(pathlib.Path(os.environ["HOME_DIR"]), pathlib.Path(os.environ["OUTSIDE"])))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_full_disk_refuses_clearly_damages_nothing_and_goes_on_with_room(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    script = f'mount -t tmpfs -o size=8m,mode=0700 tmpfs {home} && exec {sys.executable} -W ignore -c "$PROGRAM"'
    environment = os.environ | {
        "HOME_DIR": str(home),
        "OUTSIDE": str(outside),
        "PROGRAM": FULL,
        "PYTHONPATH": str(TESTS),
    }
    result = subprocess.run(
        [*UNSHARE, "sh", "-c", script], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("ok\n")
