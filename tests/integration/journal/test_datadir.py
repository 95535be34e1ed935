"""The data directory with real processes: one at a time, private, and free again however the first one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_node.datadir import DataDir
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

HOLD = """
import sys, pathlib
from openlora_node.datadir import DataDir
with DataDir.open(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "data"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.communicate()


def refusal(path: Path) -> OpenLoraError:
    with pytest.raises(OpenLoraError) as caught:
        DataDir.open(path)
    return caught.value


def test_a_second_process_is_refused_and_told_the_pid_of_the_first(tmp_path: Path, holder) -> None:
    error = refusal(tmp_path / "data")
    assert error.code is ErrorCode.DATADIR_LOCKED
    assert f"process {holder.pid} " in error.message


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None], ids=str)
def test_the_lock_is_free_however_its_holder_ended(tmp_path: Path, holder, end: signal.Signals | None) -> None:
    if end is not None:
        holder.send_signal(end)
    holder.communicate()
    with DataDir.open(tmp_path / "data"):
        assert (tmp_path / "data" / "LOCK").read_text().splitlines()[0] == str(os.getpid())
        assert f"process {os.getpid()} " in refusal(tmp_path / "data").message
    with DataDir.open(tmp_path / "data"):
        pass


def test_it_is_made_private_and_refused_when_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a" / "data"
    with DataDir.open(path) as data:
        data.close()
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / "LOCK").stat().st_mode & 0o777 == 0o600
    for mode in (0o750, 0o701, 0o777):
        path.chmod(mode)
        error = refusal(path)
        assert error.code is ErrorCode.DATADIR_UNSAFE
        assert f"{mode:04o}" in error.message


def test_a_file_or_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file").code is ErrorCode.DATADIR_UNSAFE
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "LOCK").symlink_to(tmp_path / "file")
    assert refusal(tmp_path / "data").code is ErrorCode.DATADIR_UNSAFE
