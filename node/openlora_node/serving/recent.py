"""Finished responses kept in memory for a payer that asks again: bounded in number, bytes and time. No I/O."""

from __future__ import annotations

from collections import OrderedDict

from .response import Response


class Recent:
    """The newest finished responses by request digest; the oldest go first. Times are unix seconds."""

    def __init__(self, max_count: int, max_bytes: int, life_s: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._life_s = life_s
        self._held: OrderedDict[bytes, Response] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, response: Response, now: int) -> None:
        """Keep a finished response; one larger than all the room is not kept."""
        self._expire(now)
        if response.digest in self._held or response.size > self._max_bytes:
            return
        self._held[response.digest] = response
        self.size += response.size
        while len(self._held) > self._max_count or self.size > self._max_bytes:
            self._drop_oldest()

    def find(self, digest: bytes, now: int) -> Response | None:
        """The response to a request, if it is still held."""
        self._expire(now)
        return self._held.get(digest)

    def _expire(self, now: int) -> None:
        while self._held:
            oldest = next(iter(self._held.values()))
            if oldest.finished is not None and oldest.finished.at + self._life_s >= now:
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, response = self._held.popitem(last=False)
        self.size -= response.size
