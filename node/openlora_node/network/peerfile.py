"""Peers remembered on disk, so that a node finds its network again when every bootstrap peer is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_PEERS = 256
MAX_FILE_BYTES = 1 << 20
MODE = 0o600


class KnownPeer(msgspec.Struct, frozen=True):
    """A peer that was connected once. `seen` is in unix seconds."""

    peer: Annotated[str, Meta(max_length=64)]
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]
    seen: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


@dataclass(frozen=True)
class PeerFile:
    """A JSON list of peers, newest first. What does not parse is left out: it is a cache."""

    path: Path

    def read(self) -> tuple[KnownPeer, ...]:
        """The peers remembered."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            entries = msgspec.json.decode(data, type=list[msgspec.Raw])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ()
        return tuple(_known(entries))[:MAX_PEERS]

    def merge(self, seen: Iterable[KnownPeer]) -> None:
        """Remember `seen` as well; the longest unseen are forgotten. A disk that refuses is no reason to stop."""
        newest: dict[str, KnownPeer] = {}
        for known in sorted((*self.read(), *seen), key=lambda known: known.seen):
            newest[known.peer] = known
        peers = sorted(newest.values(), key=lambda known: -known.seen)[:MAX_PEERS]
        partial = self.path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(peers))
            partial.replace(self.path)


def _known(entries: Iterable[msgspec.Raw]) -> Iterator[KnownPeer]:
    for entry in entries:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield msgspec.json.decode(entry, type=KnownPeer)
