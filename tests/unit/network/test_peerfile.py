"""Peers on disk: bounded, private, and no reason to stop whatever the file holds."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.peerfile import MAX_PEERS, KnownPeer, PeerFile


def peers(first: int, last: int, seen: int = 0) -> list[KnownPeer]:
    return [KnownPeer(f"peer{i}", ("/ip4/127.0.0.1/tcp/1",), seen + i) for i in range(first, last)]


def test_the_newest_are_kept_each_once(tmp_path: Path) -> None:
    file = PeerFile(tmp_path / "peers.json")
    assert file.read() == ()
    file.merge(peers(0, MAX_PEERS))
    file.merge(peers(0, 10, seen=10_000))
    file.merge(peers(1000, 1020))
    read = file.read()
    assert len(read) == MAX_PEERS == len({known.peer for known in read})
    assert [known.peer for known in read[:10]] == [f"peer{i}" for i in reversed(range(10))]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]


@pytest.mark.parametrize("data", [b"", b"[", b"{}", b'[{"peer": 1}]', b"\xff\xfe", b"[" * 5000, b"0" * (2 << 20)])
def test_a_file_of_garbage_counts_as_empty_and_is_replaced(tmp_path: Path, data: bytes) -> None:
    file = PeerFile(tmp_path / "peers.json")
    file.path.write_bytes(data)
    assert file.read() == ()
    file.merge(peers(0, 3))
    assert len(file.read()) == 3


def test_one_bad_entry_costs_no_other(tmp_path: Path) -> None:
    file = PeerFile(tmp_path / "peers.json")
    file.merge([*peers(0, 3), KnownPeer("long", ("/dns4/" + 300 * "x" + "/tcp/1",), 9)])
    assert {known.peer for known in file.read()} == {"peer0", "peer1", "peer2"}
    file.merge(peers(3, 4))
    assert len(file.read()) == 4


@given(data=st.binary(max_size=200))
def test_no_bytes_raise(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = PeerFile(tmp_path_factory.mktemp("peers") / "peers.json")
    file.path.write_bytes(data)
    file.read()


def test_a_disk_that_refuses_is_no_reason_to_stop(tmp_path: Path) -> None:
    PeerFile(tmp_path / "missing" / "peers.json").merge(peers(0, 1))
