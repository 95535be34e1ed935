"""Kept prompts and outputs, only where the payer asked for it: a private file a response, deleted in time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..protocol.errors import ErrorCode, OpenLoraError

FOLDER = "texts"


class Texts:
    """The folder of kept texts, mode 0700, files 0600. Names are receipt digests."""

    def __init__(self, folder: Path, ttl_s: float, clock: Callable[[], int]) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._clock = clock

    def keep(
        self, receipt: bytes, prompt: dict[str, Any], outputs: list[str], token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Write one response's text and tokens, by choice: `attribution replay` takes the file.

        Blocks on the disk. Raises STORAGE_FAILED.
        """
        content = {
            "at": self._clock(),
            "receipt": f"0x{receipt.hex()}",
            "prompt": prompt,
            "outputs": outputs,
            "tokenIds": token_ids,
        }
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"{receipt.hex()}.json"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
        except OSError:
            raise OpenLoraError(ErrorCode.STORAGE_FAILED, "the response's text could not be kept") from None

    def expire(self) -> int:
        """Delete what is older than its time. Blocks on the disk. Returns how many files went."""
        oldest, gone = self._clock() - self._ttl_s, 0
        if not self._folder.is_dir():
            return 0
        for path in self._folder.glob("*.json"):
            try:
                if path.lstat().st_mtime < oldest:
                    path.unlink()
                    gone += 1
            except FileNotFoundError:
                continue
        return gone
