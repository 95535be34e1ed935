"""The record of a development chain: genesis, then one line per block, durable before the block is visible."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import ChainError, ChainErrorCode

FORMAT = "openlora-devnet-1"


class History:
    """An append-only file. Its last line may be cut short by a crash: then the block was never visible, and it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def open(self, genesis_time: int) -> int:
        """Open or begin the record; returns the genesis time it holds. Raises ChainError DEVNET_FAILED."""
        if not self._path.exists():
            self._begin(genesis_time)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        held = _genesis_time(content[:whole].split(b"\n", 1)[0])
        self._file = self._path.open("r+b")
        self._file.truncate(whole)
        self._file.seek(whole)
        return held

    def blocks(self) -> Iterator[tuple[int, bytes | None]]:
        """(timestamp, raw transaction or None) of every recorded block."""
        with self._path.open("rb") as file:
            next(file)
            for line in file:
                timestamp, raw = json.loads(line)
                yield timestamp, None if raw is None else bytes.fromhex(raw)

    def append(self, timestamp: int, raw: bytes | None) -> None:
        """Record a block; on disk when this returns."""
        assert self._file is not None
        self._file.write(json.dumps([timestamp, None if raw is None else raw.hex()]).encode() + b"\n")
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, genesis_time: int) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"format": FORMAT, "genesis": genesis_time}) + "\n", "ascii")
        temporary.replace(self._path)


def _genesis_time(line: bytes) -> int:
    damaged = ChainError(ChainErrorCode.DEVNET_FAILED, "the devnet's record is damaged: delete its directory")
    try:
        header = json.loads(line)
        known, genesis_time = header["format"] == FORMAT, int(header["genesis"])
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if not known:
        raise damaged
    return genesis_time
